"""Steps of a learned size: the inverse of a model of errors, in no units."""

import math

import pytest
import torch

from sklearn_hyper.modules.learned_steps import LearnedSteps

LOW, HIGH, POWER = 0.01, 1.0, 5


def make_steps(shape=(3,), t_span=(0.0, 2.0), size=1.0, time=1.0):
    torch.manual_seed(0)
    sizes = size * torch.tensor([1.0, 2.0, 0.5]).reshape(1, 3, *[1] * (len(shape) - 1))
    steps = LearnedSteps(t_span, (LOW * time, HIGH * time), POWER, sizes).double()
    steps.unit.copy_(torch.tensor([-8.0, 3.0]))
    return steps.requires_grad_(False)


def where(shape=(3,), n=50):
    generator = torch.Generator().manual_seed(1)
    s = torch.rand(n, generator=generator, dtype=torch.float64)
    return s, *(torch.randn(n, *shape, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
def test_a_proposed_step_has_the_error_that_was_asked_for(shape):
    steps, place = make_steps(shape), where(shape)
    errors = torch.stack([steps.log_errors(steps.features(*place), eps * torch.ones(50)) for eps in (LOW, HIGH)])
    rtol = float(errors.mean().exp())
    inside = (errors[0] < math.log(rtol)) & (math.log(rtol) < errors[1])
    eps = steps.propose(*place, rtol)
    assert inside.sum() > 10
    found = steps.log_errors(steps.features(*place), eps)
    torch.testing.assert_close(found[inside], torch.full_like(found[inside], math.log(rtol)))


def test_steps_grow_with_the_tolerance_up_to_the_longest_fitted_one():
    steps, place = make_steps(), where()
    eps = torch.stack([steps.propose(*place, rtol) for rtol in (1e-12, 1e-8, 1e-4, 1.0, 1e6, 1e7)])
    is_longest = eps > HIGH * (1 - 1e-9)
    assert bool((eps.diff(dim=0)[~is_longest[1:]] > 0).all()) and not is_longest[0].any()
    torch.testing.assert_close(eps[4:], torch.full_like(eps[4:], HIGH))


def test_below_the_fitted_range_steps_go_with_the_root_of_the_tolerance():
    steps, place = make_steps(), where()
    short, shorter = steps.propose(*place, 1e-30), steps.propose(*place, 1e-35)
    assert bool((short < LOW).all())
    torch.testing.assert_close(short / shorter, torch.full_like(short, 10 ** (5 / POWER)))


def test_units_of_states_and_time_do_not_matter():
    s, z, slopes = where()
    eps = make_steps().propose(s, z, slopes, 1e-3)
    size, time = 2.0**-30, 2.0**40
    changed = make_steps(t_span=(0.0, 2 * time), size=size, time=time)
    torch.testing.assert_close(changed.propose(s * time, z * size, slopes * size / time, 1e-3), eps * time)


def test_times_far_from_zero_are_told_apart():
    s, z, slopes = where()
    far = make_steps(t_span=(2.0**30, 2.0**30 + 2)).float()
    near = make_steps().float()
    z, slopes = z.float(), slopes.float()
    torch.testing.assert_close(far.propose(s + 2.0**30, z, slopes, 1e-3), near.propose(s, z, slopes, 1e-3))


def test_states_and_fields_of_zero_have_a_step():
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    assert make_steps().propose(torch.zeros(1, dtype=torch.float64), zeros, zeros, 1e-3).isfinite().all()
