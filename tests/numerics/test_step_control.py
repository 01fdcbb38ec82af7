"""The sizes of steps: closed forms of the controllers."""

import math

import pytest
import torch

from sklearn_hyper.numerics.step_control import PIController, ProposedSteps


def controller(*sizes, power=2, max_step=100.0):
    return PIController(torch.tensor(sizes, dtype=torch.float64), power, max_step)


def after(control, eps, errors):
    control.update(torch.tensor(eps, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))
    return control.sizes.tolist()


def test_what_is_left_is_divided_evenly():
    left = torch.tensor([1.0, -1.0, 0.5, 0.3], dtype=torch.float64)
    eps = controller(0.3, 0.3, 0.5, 1.0).even(left)
    assert eps.tolist() == [0.25, -0.25, 0.5, 0.3]


def test_a_step_grows_by_its_error_and_that_of_the_last():
    control = controller(1.0)
    assert after(control, [1.0], [0.25]) == pytest.approx([0.9 * 4**0.35])
    assert after(control, [-2.0], [0.5]) == pytest.approx([2 * 0.9 * 2**0.35 * 0.25**0.2])  # eps has a sign


def test_a_failed_step_shrinks_and_the_next_does_not_grow():
    control = controller(1.0, 1.0)
    assert after(control, [1.0, 1.0], [4.0, 0.25]) == pytest.approx([0.45, 0.9 * 4**0.35])
    assert after(control, [0.45, 1.0], [1e-3, 1e-3])[0] == 0.45
    assert after(control, [0.45, 1.0], [1e-3, 1e-3])[0] > 0.45


@pytest.mark.parametrize(("error", "size"), [(0.0, 5.0), (math.inf, 0.2), (1e12, 0.2), (1.0, 0.9)])
def test_changes_are_bounded(error, size):
    assert after(controller(1.0), [1.0], [error]) == pytest.approx([size])
    assert after(controller(1.0, max_step=3.0), [1.0], [error])[0] <= 3


def test_lanes_that_arrive_are_dropped():
    control = controller(1.0, 2.0, 3.0)
    after(control, [1.0, 2.0, 3.0], [4.0, 0.5, 0.5])
    sizes = control.sizes.clone()
    control.keep(torch.tensor([True, False, True]))
    assert torch.equal(control.sizes, sizes[[0, 2]]) and control.has_failed.tolist() == [True, False]


# --- steps that are proposed ----------------------------------------------------------------------------------------


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_proposals_are_taken_up_to_the_longest_step_and_divided_evenly():
    control = ProposedSteps(lambda: float64(0.3, 7.0, math.nan), torch.full((3,), 0.5, dtype=torch.float64), 1e3)
    assert control.even(float64(1.0, 2.0, -2.0)).tolist() == [0.25, 0.5, -0.5]


def test_a_step_that_fails_is_halved_until_it_passes():
    """Half of what was tried, be the proposal longer."""
    control = ProposedSteps(lambda: float64(0.8, 0.8), float64(1.0, 1.0), limit=100.0)
    assert control.accepts(float64(99.0, math.inf)).tolist() == [True, False]
    for tried in (0.5, 0.25, 0.125):
        eps = control.even(float64(0.5, 0.5))
        assert eps.tolist() == [0.5, tried]
        control.update(eps, float64(1.0, math.inf))
        assert control.sizes.tolist() == [0.5, tried / 2]
    control.update(control.even(float64(0.5, 0.5)), float64(1.0, 1.0))
    assert control.even(float64(0.5, 0.5)).tolist() == [0.5, 0.5]


def test_proposals_are_dropped_with_their_lanes():
    lanes = torch.tensor([True, False, True])
    proposals = [float64(1.0, 2.0, 3.0)]
    control = ProposedSteps(lambda: proposals[0], float64(9.0, 9.0, 2.0), 1.0)
    control.update(control.even(float64(6.0, 6.0, 6.0)), float64(2.0, 1.0, 1.0))
    control.keep(lanes)
    proposals[0] = proposals[0][lanes]
    assert control.even(float64(6.0, 6.0)).tolist() == [0.5, 2.0]
