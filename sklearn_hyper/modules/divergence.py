"""Divergence of a vector field, and dynamics that integrate log densities along with states (FFJORD)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .neural_ode import VectorFieldError
from .serialization import DeviceFreeModule


def vector_jacobian_products(
    f: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor, vectors: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    r"""Evaluate f and the products :math:`v^\top J` of vectors with its Jacobian :math:`J = \partial f / \partial z`.

    Parameters
    ----------
    f : callable
        ``f(t, z)``. Rows of a batch must not depend on each other.
    t : 0-d Tensor
    z : Tensor of shape (batch, d)
    vectors : sequence of Tensor, broadcastable to z
        Each costs one backward pass.

    Returns
    -------
    dz : Tensor of shape (batch, d)
    products : list of Tensor of shape (batch, d)
        Where gradients are enabled outside, these are part of the graph, so that training can differentiate them.

    Raises
    ------
    VectorFieldError
        If the field's output does not depend on z as autograd sees it.

    Notes
    -----
    Works where gradients are disabled outside (``torch.no_grad``), but not under ``torch.inference_mode``.
    """
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (training and z.requires_grad):
            z = z.detach().requires_grad_(True)
        dz = f(t, z.clone())  # on a copy: an in-place f would change the z that the Jacobian is taken with respect to
        products = [_vector_jacobian_product(dz, z, v, training) for v in vectors]
    return (dz, products) if training else (dz.detach(), products)


def _vector_jacobian_product(dz: Tensor, z: Tensor, v: Tensor, training: bool) -> Tensor:
    product = None
    if dz.requires_grad:
        # Not materialize_grads: zeros would hide that a field with parameters detaches z.
        (product,) = torch.autograd.grad(
            dz, z, v.expand_as(dz), create_graph=training, retain_graph=True, allow_unused=True
        )  # fmt: skip
    if product is None:
        raise VectorFieldError(
            "vector_field's output does not depend on z as autograd sees it, so its divergence is unknown: do not "
            "detach it or compute it under torch.no_grad or torch.inference_mode (a field that really is constant can "
            "add 0 * z)."
        )
    return product


class LogDensityField(DeviceFreeModule):
    r"""Dynamics of a state and its log density, by the instantaneous change of variables.

    .. math::

        \frac{d}{dt} \begin{pmatrix} z \\ \log p \end{pmatrix} =
        \begin{pmatrix} f(t, z) \\ -\operatorname{tr} \partial f / \partial z \end{pmatrix}

    With ``hutchinson=True`` the trace is the unbiased estimate :math:`e^\top (\partial f / \partial z)\, e`. The noise
    e is read from the last d features of x. So it is the same at every evaluation of a solve, and for all solvers that
    get the same x.

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(t, z)``, which may take a condition as keyword arguments.
    hutchinson : bool, default False
        Estimate the trace from one backward pass per evaluation instead of d. The estimate is noisy.
    penalties : bool, default False
        Add two coordinates, the regularisers of RNODE: :math:`\int \|f\|^2` and
        :math:`\int \|\partial f / \partial z\|_F^2`. With ``hutchinson=True`` the second is estimated by
        :math:`\|e^\top \partial f / \partial z\|^2`.

    References
    ----------
    Grathwohl et al. (2019), *FFJORD*, ICLR. Finlay et al. (2020), *How to train your Neural ODE* (RNODE), ICML.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.modules import LogDensityField
    >>> field = LogDensityField(lambda t, z: -3 * z)
    >>> with torch.no_grad():  # tr = -6
    ...     field(torch.tensor(0.0), torch.tensor([[1.0, 2.0, 0.0]]))
    tensor([[-3., -6.,  6.]])
    """

    def __init__(self, vector_field: Callable[..., Tensor], *, hutchinson: bool = False, penalties: bool = False):
        super().__init__()
        self.vector_field = vector_field
        self.hutchinson = hutchinson
        self.penalties = penalties

    def forward(self, t: Tensor, state: Tensor, x: Tensor | None = None, /, **condition: Any) -> Tensor:
        z = state[:, : state.shape[1] - (3 if self.penalties else 1)]
        d = z.shape[1]
        if self.hutchinson:
            if x is None:
                raise TypeError(
                    "LogDensityField(hutchinson=True) needs the noise: call it with x, whose last d features it is."
                )
            vectors = [x[:, -d:]]
        else:
            vectors = list(torch.eye(d, dtype=z.dtype, device=z.device))
        field = functools.partial(self.vector_field, **condition) if condition else self.vector_field
        dz, products = vector_jacobian_products(field, t, z, vectors)
        trace = torch.stack([(v * product).sum(dim=1) for v, product in zip(vectors, products, strict=True)]).sum(dim=0)
        columns = [dz, -trace[:, None]]
        if self.penalties:
            jacobian = torch.stack([product.pow(2).sum(dim=1) for product in products]).sum(dim=0)
            columns += [dz.pow(2).sum(dim=1, keepdim=True), jacobian[:, None]]
        return torch.cat(columns, dim=1)


def without_noise(neural_ode: nn.Module, x: Tensor) -> Tensor:
    """Return what of the inputs is rows of data: all columns, but for Hutchinson's noise where a density takes it."""
    estimates = any(isinstance(part, LogDensityField) and part.hutchinson for part in neural_ode.modules())
    return x[:, : x.shape[1] // 2] if estimates else x


class AppendLogDensity(nn.Module):
    """Input map of a density solve: map the first d features of x to the field's coordinates, and append zeros.

    Parameters
    ----------
    n_features : int
        d.
    scaler : nn.Module
        Maps data to the field's coordinates.
    n_zeros : int, default 1
        Number of zeros to append.
    """

    def __init__(self, n_features: int, scaler: nn.Module, n_zeros: int = 1):
        super().__init__()
        self.n_features = n_features
        self.scaler = scaler
        self.n_zeros = n_zeros

    def forward(self, x: Tensor) -> Tensor:
        z = self.scaler(x[:, : self.n_features])
        return torch.cat([z, z.new_zeros(z.shape[0], self.n_zeros)], dim=1)
