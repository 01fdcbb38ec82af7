"""The Neural ODE itself (paper, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.cost import count_macs
from ..numerics.reference import DEFAULT_TOLERANCE, solve_dopri5
from ..numerics.solve import check_t_span, time_tensor
from ..numerics.units import absolute_tolerance, feature_sizes
from .serialization import DeviceFreeModule

_MEASURED_ROWS = 512


class NeuralODE(DeviceFreeModule):
    r"""A Neural ODE, solved with dopri5.

    .. math::

        \dot z = f(s, x, z(s)), \qquad z(s_0) = h_x(x), \qquad \hat y = h_y(z(S))
        \qquad \text{(eq. 1)}

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(t, z)``, as in torchdiffeq, or ``f(t, z, x)`` with ``data_controlled=True``. t is a 0-d tensor on z's device and
        of its dtype, or of float64 where that does not resolve ``t_span`` (Unix times in float32, say); z has shape
        (batch, ...), and so has the result. Parameters that vary with depth, theta(s), are just such an f.
    input_map : nn.Module or callable, optional
        :math:`h_x`, from the input to the initial state. Missing: the identity.
    output_map : nn.Module or callable, optional
        :math:`h_y`, from the terminal state to the output. Missing: the identity.
    t_span : pair of float, default (0.0, 1.0)
        Start and end of the solve; the end may lie before the start.
    data_controlled : bool, default False
        Whether the field takes the raw input x as a third argument. Stated, never guessed from argument names.
    state_size : sequence of float, optional
        How large the states are, by feature or channel (axis 1): what an absolute tolerance that is left out is a share of.
        Missing: their RMS over the batch that is solved. Estimators take it from the rows of their fit, so that a
        prediction does not depend on its batch.

    Raises
    ------
    TypeError
        If the field or a map is not callable.
    ValueError
        If ``t_span`` is not a pair of two different finite numbers, or too far from zero for float64 to resolve it.

    References
    ----------
    Chen et al. (2018), *Neural Ordinary Differential Equations*; Massaroli et al. (2020), *Dissecting Neural ODEs*.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import NeuralODE
    >>> decay = NeuralODE(lambda t, z: -z)
    >>> round(decay(torch.ones(1, 1)).item(), 4)
    0.3679
    """

    state_size: tuple[float, ...] | None = None
    n_unitless = 0
    """So many numbers at the end of a state have no units: log densities."""

    def __init__(
        self,
        vector_field: Callable[..., Tensor],
        *,
        input_map: Callable[[Tensor], Tensor] | None = None,
        output_map: Callable[[Tensor], Tensor] | None = None,
        t_span: tuple[float, float] = (0.0, 1.0),
        data_controlled: bool = False,
        state_size: Sequence[float] | None = None,
    ):
        super().__init__()
        for name, part in [("vector_field", vector_field), ("input_map", input_map), ("output_map", output_map)]:
            if part is not None and (not callable(part) or isinstance(part, type)):
                raise TypeError(f"{name} must be an nn.Module or a callable, got {part!r}.")
        if vector_field is None:
            raise TypeError("vector_field must be an nn.Module or a callable f(t, z), got None.")
        self.vector_field = vector_field
        self.input_map = nn.Identity() if input_map is None else input_map
        self.output_map = nn.Identity() if output_map is None else output_map
        self.t_span = check_t_span(t_span)
        self.data_controlled = bool(data_controlled)
        # Plain numbers: they need not move with the module, and leave its dtype to be that of its tensors.
        self.state_size = None if state_size is None else tuple(float(size) for size in state_size)

    def control(self, x: Tensor) -> Tensor | None:
        """What the field receives as its third argument: x, or None where it takes two."""
        return x if self.data_controlled else None

    def forward(
        self, x: Tensor, rtol: float = DEFAULT_TOLERANCE, atol: float | None = None, adjoint: bool = False
    ) -> Tensor:
        """Solve with torchdiffeq's dopri5 and map the terminal state to the output.

        Parameters
        ----------
        x : Tensor of shape (batch, ...)
        rtol : float, default 1e-6
        atol : float, optional
            In the units of the states. Missing: ``rtol`` times their size, ``state_size``.
        adjoint : bool, default False
            Gradients by the adjoint method instead of backpropagation through the solver.

        Returns
        -------
        Tensor of shape (batch, ...)
        """
        params = [p for p in self.parameters() if p.requires_grad] if adjoint else None
        z0 = self.input_map(x)
        z = solve_dopri5(
            self.vector_field,
            z0,
            self.t_span,
            rtol=rtol,
            atol=self.tolerance(atol, rtol, z0),
            x=self.control(x),
            adjoint_params=params,
        )
        return self.output_map(z)

    def tolerance(self, atol: float | None, rtol: float, z0: Tensor) -> float | Tensor:
        """The absolute tolerance of a solve from z0: ``atol``, or where that is None a share of the states' size."""
        return absolute_tolerance(atol, rtol, z0, self.state_size, self.n_unitless)

    def measure_size(self, x: Tensor) -> None:
        """Take ``state_size`` from the initial states of (some of) these rows."""
        with torch.no_grad():
            z = self.input_map(x[:: -(-len(x) // _MEASURED_ROWS)])
        self.state_size = tuple(feature_sizes(z, self.n_unitless).flatten().tolist())

    def count_field_macs(self, x: Tensor) -> float:
        """Multiply-accumulates of one evaluation of f, for the inputs x; nan where it holds no product or convolution."""
        with torch.no_grad():
            z = self.input_map(x)
        control = self.control(x)
        t = time_tensor(self.t_span[0], z, self.t_span)
        return count_macs(self.vector_field, t, z, *([] if control is None else [control]))

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype of the module's parameters and buffers, None where it has none."""
        tensors = [*self.parameters(), *self.buffers()]
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)

    def extra_repr(self) -> str:
        parts = [f"t_span={self.t_span}"]
        if self.data_controlled:
            parts.append("data_controlled=True")
        if not isinstance(self.vector_field, nn.Module):
            parts.append(f"vector_field={self.vector_field!r}")
        return ", ".join(parts)


class VectorFieldError(ValueError):
    """A vector field or map does not do what a Neural ODE needs of it."""


def check_neural_ode(neural_ode: NeuralODE, x: Tensor) -> Tensor:
    """Run the maps and the field once on a few rows; return the initial state or say what is wrong.

    Raises
    ------
    VectorFieldError
        If the signature of the field is wrong, or its output has another shape, dtype or device than the state.
    """
    arguments = "(t, z, x)" if neural_ode.data_controlled else "(t, z)"
    hint = (
        "" if neural_ode.data_controlled else "; a field that takes the input too needs NeuralODE(data_controlled=True)"
    )
    with torch.no_grad():
        try:
            z = neural_ode.input_map(x)
        except Exception as error:
            raise VectorFieldError(
                f"input_map fails on an input of shape {tuple(x.shape)} (batch first) and dtype {x.dtype}: {error}"
            ) from error
        if not isinstance(z, Tensor) or z.ndim < 1 or z.shape[0] != x.shape[0] or not z.is_floating_point():
            raise VectorFieldError(
                "input_map must return a floating-point tensor of shape (batch, ...), got "
                f"{_describe(z)} for an input of shape {tuple(x.shape)}."
            )
        t = time_tensor(neural_ode.t_span[0], z, neural_ode.t_span)
        if t.dtype != z.dtype:
            hint += (
                f". Times of t_span={neural_ode.t_span} are not resolved by {z.dtype}, so the field gets t in {t.dtype}: cast what "
                "it makes of t to z's dtype, measure time from the start (t_span=(0, ...)), or use float64 for all"
            )
        control = neural_ode.control(x)
        try:
            dz = neural_ode.vector_field(t, z) if control is None else neural_ode.vector_field(t, z, control)
        except Exception as error:
            raise VectorFieldError(
                f"vector_field{arguments} fails on a state of shape {tuple(z.shape)} and dtype {z.dtype}: {error}{hint}"
            ) from error
        if not isinstance(dz, Tensor) or (dz.shape, dz.dtype, dz.device) != (z.shape, z.dtype, z.device):
            raise VectorFieldError(
                f"vector_field{arguments} must return a tensor like z ({_describe(z)}), got {_describe(dz)}"
                f"{hint if t.dtype != z.dtype else ''}."
            )
    return z


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}, {value.dtype}, {value.device}"
    return f"{type(value).__name__}"
