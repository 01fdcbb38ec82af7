"""Losses as differences: what vanishes for an exact correction, in units of what the base solver leaves."""

import pytest
import torch
from small_tasks import logistic_targets
from torch import nn

from sklearn_hyper.training.losses import (
    ObservedMSELoss,
    ScaledMSELoss,
    output_loss,
    residual_loss,
    terminal_loss,
    trajectory_loss,
)

STATES = torch.arange(12.0, dtype=torch.float64).reshape(3, 2, 2)
REFERENCE = STATES + torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64)[:, None, None]


class Exact(nn.Module):
    """Hands out a residual's own target."""

    def __init__(self, residual, share=1.0):
        super().__init__()
        self.residual, self.share = residual, share

    def forward(self, eps, s, z, stages, x=None, kind=None):
        assert (eps, kind) == (self.residual.eps, self.residual.kind) and torch.equal(s, self.residual.time())
        assert torch.equal(z, self.residual.z) and len(stages) == kind.n_stages and x is None
        return self.share * self.residual.target


@pytest.mark.parametrize("base_solver", ["euler", "ab2"])
@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_the_residual_loss_is_the_share_that_is_missed(base_solver, share):
    _, _, targets = logistic_targets(base_solver)
    for target in targets[::7]:
        loss = residual_loss(Exact(target.residual, share), target.residual, None, target.unit)
        assert float(loss) == pytest.approx(1 - share, abs=1e-12)


def test_losses_of_states_are_of_the_end_or_of_all_steps():
    assert torch.equal(terminal_loss(STATES, REFERENCE), torch.full((2, 2), -3.0, dtype=torch.float64))
    path = trajectory_loss(STATES, REFERENCE)  # without the start, which is given
    assert path.shape == (4, 2) and path[:2].unique().tolist() == [1.0] and path[2:].unique().tolist() == [-3.0]


def test_the_loss_of_outputs_is_of_what_the_output_map_lets_through():
    assert output_loss(lambda z: z[:, :1] * 2)(STATES, REFERENCE).tolist() == [[-6.0], [-6.0]]
    assert output_loss(torch.zeros_like)(STATES, REFERENCE).abs().max() == 0


def test_squared_errors_are_in_units_of_the_targets():
    loss, prediction, target = ScaledMSELoss(torch.tensor([2.0, 10.0])), torch.zeros(3, 2), torch.tensor([[2.0, 10.0]])
    assert float(loss(prediction, target.expand(3, 2))) == 1.0
    assert "scale" in loss.state_dict()  # it moves and is saved with the net


def test_what_was_not_observed_counts_for_nothing():
    scale = torch.tensor([2.0, 0.5])
    prediction = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.zeros(4, 3, 2)
    plain, observed = ScaledMSELoss(scale), ObservedMSELoss(scale)
    torch.testing.assert_close(observed(prediction, target), plain(prediction, target))
    seen = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1)) < 0.5
    holes = target.masked_fill(~seen, torch.nan)
    loss = observed(prediction.masked_fill(~seen, torch.nan), holes)
    torch.testing.assert_close(loss, ((prediction / scale).pow(2))[seen].mean())
    observed.reduction = "none"
    torch.testing.assert_close(observed(prediction, holes).mean(), loss)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert gradient.isfinite().all() and torch.equal(gradient != 0, seen)


def test_a_batch_of_which_nothing_was_observed_has_no_loss():
    assert ObservedMSELoss(torch.ones(1))(torch.ones(2, 2, 1), torch.full((2, 2, 1), torch.nan)) == 0
