"""SOAP: Adam in the eigenbases of the gradients' covariances."""

import pytest
import torch
from small_corrections import DOUBLE

from sklearn_hyper.training.soap import Soap


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def orthogonal(n, seed):
    return torch.linalg.qr(randn(n, n, seed=seed))[0]


A, B = randn(8, 4), randn(4, 8, seed=1)
TARGET = randn(8, 8, seed=2)


def descend(weight, loss, n_steps, make=Soap, lr=0.05):
    weight = torch.nn.Parameter(weight.clone())
    optimizer = make([weight], lr=lr)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss(weight).backward()
        optimizer.step()
    return weight.detach()


def error(weight):
    return (A @ weight @ B - TARGET).pow(2).mean()


def test_a_turned_problem_takes_turned_steps():
    """Adam's steps depend on the axes of a matrix, these do not."""
    left, right, start = orthogonal(4, 3), orthogonal(4, 4), randn(4, 4, seed=5)
    straight = descend(start, error, 45)
    turned = descend(left @ start @ right, lambda weight: error(left.T @ weight @ right.T), 45)
    torch.testing.assert_close(turned, left @ straight @ right, rtol=1e-4, atol=1e-5)
    adam = descend(left @ start @ right, lambda weight: error(left.T @ weight @ right.T), 45, torch.optim.Adam)
    assert (adam - left @ descend(start, error, 45, torch.optim.Adam) @ right).abs().max() > 1e-2


def test_an_ill_conditioned_problem_takes_fewer_steps_than_adam_needs():
    """The hidden basis is turned, and the curvatures along it differ by 10^4."""
    turn, scales = orthogonal(6, 6), torch.logspace(0, -2, 6, dtype=DOUBLE)

    def loss(weight):
        return (scales[:, None] * (turn @ weight - 1)).pow(2).sum()

    start = torch.zeros(6, 4, dtype=DOUBLE)
    ours, adams = (float(loss(descend(start, loss, 150, make))) for make in (Soap, torch.optim.Adam))
    assert ours < 0.5 * adams


def test_a_stack_is_trained_as_its_matrices_are():
    starts = [randn(4, 4, seed=seed) for seed in (7, 8)]
    stacked = descend(torch.stack(starts), lambda weights: sum(error(weight) for weight in weights), 45)
    torch.testing.assert_close(stacked, torch.stack([descend(start, error, 45) for start in starts]))


def test_a_kernel_is_trained_as_a_matrix_of_its_outputs_by_the_rest():
    kernel = randn(4, 2, 3, 3)
    loss = lambda weight: (weight.flatten(1).sin().sum(0) - 1).pow(2).sum()  # noqa: E731
    torch.testing.assert_close(descend(kernel, loss, 25), descend(kernel.flatten(1), loss, 25).view_as(kernel))


@pytest.mark.parametrize("shape", [(4,), (1, 1), ()], ids=str)
def test_what_has_no_sides_is_left_to_adam(shape):
    make = lambda params, lr: torch.optim.Adam(params, lr, betas=(0.9, 0.95), eps=1e-12)  # noqa: E731
    loss = lambda weight: (weight - 1).pow(4).sum()  # noqa: E731
    start = torch.zeros(shape, dtype=DOUBLE)
    torch.testing.assert_close(descend(start, loss, 30), descend(start, loss, 30, make), rtol=1e-6, atol=1e-8)


def test_long_sides_get_no_basis():
    optimizer = Soap([weight := torch.nn.Parameter(torch.zeros(300, 2))])
    (weight.sum() ** 2 + weight.sum()).backward()
    optimizer.step()
    assert {name for name in optimizer.state[weight] if "basis" in name} == {"basis_right"}


def test_its_state_can_be_saved_and_taken_up():
    halves = torch.nn.Parameter(randn(4, 4, seed=9))
    first = Soap([halves], lr=0.05)
    for step in range(40):
        if step == 25:
            saved, first = first.state_dict(), Soap([halves], lr=0.05)
            first.load_state_dict(saved)
        first.zero_grad()
        error(halves).backward()
        first.step()
    torch.testing.assert_close(halves.detach(), descend(randn(4, 4, seed=9), error, 40))


def test_a_closure_gives_the_loss():
    weight = torch.nn.Parameter(torch.ones(2, 2))

    def closure():
        loss = weight.pow(2).sum()
        loss.backward()
        return loss

    assert Soap([weight]).step(closure).item() == 4
    assert (weight < 1).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12])
def test_small_and_large_gradients_are_steps_too(scale):
    """In single precision, where squares of small ones underflow, and decompositions of covariances may fail."""
    loss = lambda weight: scale * (weight[:3] - 1).pow(2).sum()  # noqa: E731 - half of it is never used
    start = randn(6, 6, seed=10).float()
    end = descend(start, loss, 100)
    assert end.isfinite().all()
    assert scale < 1e-20 or loss(end) < 0.5 * loss(start)


def test_a_gradient_that_is_not_finite_reaches_the_weights_and_so_the_check_for_divergence():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = Soap([weight])
    (weight.sum() * torch.tensor(float("nan"))).backward()
    optimizer.step()
    assert weight.isnan().any()
