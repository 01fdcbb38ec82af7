"""SOAP, an optimizer that sees how the entries of a weight matrix hang together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_BETAS = (0.9, 0.95)
_TINY, _NOISE = 1e-12, 1e-6
"""Smallest size of a gradient along a direction, and that as a share of the largest: below it, there is rounding."""
_REFRESH = 20
"""Steps between two refinements of the bases."""
_LARGEST = 256
"""Longest side of a matrix that gets a basis of its own."""


class Soap(torch.optim.Optimizer):
    r"""Adam in the eigenbases of the gradients' covariances (SOAP, Vyas et al. 2024).

    For a matrix with gradient G it averages :math:`L = G G^T` and :math:`R = G^T G`, and runs Adam on
    :math:`Q_L^T G Q_R`, where Q are eigenvectors of L and R, refined every twenty steps by a QR step. Small errors of
    small networks, where Adam crawls, take it a fraction of the steps.

    Tensors of two axes are matrices, those of three are stacks of matrices, and those of more are matrices of their
    first axis by the rest. Those of one are left to plain Adam, as are sides longer than 256.

    Parameters
    ----------
    params : iterable
        Parameters, or groups of them.
    lr : float, default 1e-2

    References
    ----------
    Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, arXiv:2409.11321.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(3, 2))
    >>> optimizer = Soap([weight], lr=0.1)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     (weight @ torch.tensor([1.0, 2.0]) - 1).pow(2).sum().backward()
    ...     _ = optimizer.step()
    >>> bool(((weight @ torch.tensor([1.0, 2.0]) - 1).abs() < 0.05).all())
    True
    """

    def __init__(self, params: Any, lr: float = 1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    self._update(parameter, parameter.grad, group["lr"])
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        state, g = self.state[parameter], _as_matrices(gradient)
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(g), torch.zeros_like(g)
            for side, covariance in _covariances(g):
                state[side] = covariance
                state[_basis(side)] = _eigenvectors(covariance)
        state["step"] += 1
        for side, covariance in _covariances(g):
            state[side].lerp_(covariance, 1 - _BETAS[1])
        left, right = state.get(_basis("left")), state.get(_basis("right"))
        turned = _turn(g, left, right)
        state["mean"].lerp_(turned, 1 - _BETAS[0])
        state["square"].mul_(_BETAS[1]).addcmul_(turned, turned, value=1 - _BETAS[1])
        n = state["step"]
        size = state["square"].sqrt().div_(math.sqrt(1 - _BETAS[1] ** n))
        if left is not None or right is not None:
            size.add_(size.amax(dim=(-2, -1), keepdim=True), alpha=_NOISE)
        size.add_(_TINY)
        change = _turn_back(state["mean"] / size, left, right)
        parameter.sub_(change.view(parameter.shape), alpha=lr / (1 - _BETAS[0] ** n))
        if n % _REFRESH == 0:
            mean = _turn_back(state["mean"], left, right)
            for side in ("left", "right"):
                if side in state:
                    state[_basis(side)] = _refined(state[side], state[_basis(side)])
            state["mean"] = _turn(mean, state.get(_basis("left")), state.get(_basis("right")))


def _as_matrices(tensor: Tensor) -> Tensor:
    """Return a tensor as a stack of matrices; one of a single axis as it is."""
    if tensor.ndim < 2:
        return tensor.reshape(-1)
    return tensor if tensor.ndim in (2, 3) else tensor.flatten(1)


def _basis(side: str) -> str:
    return f"basis_{side}"


def _covariances(g: Tensor) -> list[tuple[str, Tensor]]:
    if g.ndim < 2:
        return []
    sides = [("left", g.shape[-2], lambda: g @ g.mT), ("right", g.shape[-1], lambda: g.mT @ g)]
    return [(side, covariance()) for side, length, covariance in sides if 1 < length <= _LARGEST]


def _eigenvectors(covariance: Tensor) -> Tensor:
    """Return eigenvectors of every matrix; the unit vectors for one that has none, as it is not finite."""
    # In single precision, and with entries far below one, the decomposition itself may fail.
    scaled = _scaled(covariance)
    return torch.linalg.eigh(scaled.double())[1].to(covariance.dtype)


def _refined(covariance: Tensor, basis: Tensor) -> Tensor:
    """Return a basis that is closer to the eigenvectors: a step of orthogonal iteration."""
    return torch.linalg.qr(_scaled(covariance).double() @ basis.double())[0].to(basis.dtype)


def _scaled(covariance: Tensor) -> Tensor:
    """Return every matrix divided by its size; the unit matrix in place of one that is zero or not finite."""
    size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(
        size.isfinite() & (size > 0) & covariance.isfinite().all(-1, True).all(-2, True), covariance / size, eye
    )


def _turn(g: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    g = g if left is None else left.mT @ g
    return g if right is None else g @ right


def _turn_back(g: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    g = g if left is None else left @ g
    return g if right is None else g @ right.mT
