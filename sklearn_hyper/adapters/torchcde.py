"""Neural controlled differential equations, as torchcde writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..modules.neural_ode import NeuralODE
from ..modules.serialization import DeviceFreeModule
from .contract import Adapter


def from_torchcde(
    func: nn.Module,
    spline: Callable[..., Any],
    *,
    initial: Callable[[Tensor], Tensor],
    readout: Callable[[Tensor], Tensor] | None = None,
    times: Tensor | None = None,
    t_span: tuple[float, float] | None = None,
) -> NeuralODE:
    r"""Return the Neural ODE of a controlled differential equation :math:`dz = f(t, z)\, dX(t)`.

    Its rows are the coefficients of the control's spline, so that a solve needs nothing beside them.

    Parameters
    ----------
    func : nn.Module
        ``func(t, z)`` returns a tensor of shape (n, hidden, channels). It is copied and frozen.
    spline : class or callable
        ``spline(coeffs, times)`` returns an object with ``evaluate(t)`` and ``derivative(t)``, of shape (n, channels):
        ``torchcde.CubicSpline`` or ``torchcde.LinearInterpolation``.
    initial : callable
        From X at the start of the span, (n, channels), to the state, (n, hidden).
    readout : callable, optional
        From the terminal state to the output.
    times : Tensor of shape (length,), optional
        The spline's knots, where they are not 0, 1, ..., as for ``spline`` itself.
    t_span : pair of float, optional
        Needed without ``times``: start and end of the solve, as the spline's ``interval`` has them.

    Returns
    -------
    NeuralODE
        Data-controlled and in eval mode. Its input is the tensor of coefficients, of shape (n, length - 1, 4 channels)
        for a cubic spline.

    Raises
    ------
    ValueError
        If neither ``times`` nor ``t_span`` is given.
    TypeError
        As :class:`Adapter`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.adapters import from_torchcde
    >>> class Lines:  # stands for torchcde.LinearInterpolation
    ...     def __init__(self, coeffs, t=None):
    ...         self.values = coeffs
    ...     def evaluate(self, t):
    ...         return self.values[:, 0]
    ...     def derivative(self, t):
    ...         return self.values[:, 1] - self.values[:, 0]
    >>> class Func(torch.nn.Module):
    ...     def forward(self, t, z):
    ...         return z[:, :, None].expand(-1, -1, 2)
    >>> ode = from_torchcde(Func(), Lines, initial=torch.nn.Identity(), t_span=(0.0, 1.0))
    >>> ode(torch.rand(5, 2, 2)).shape
    torch.Size([5, 2])
    """
    if times is not None:
        times = times.detach().clone()
    if t_span is None:
        if times is None:
            raise ValueError("t_span is None and so is times: pass times=, the knots of the spline, or t_span=.")
        t_span = (float(times[0]), float(times[-1]))
    control = Control(spline, times)
    return NeuralODE(
        ControlledField(func, control), input_map=InitialState(initial, control, t_span[0]), output_map=readout,
        t_span=t_span, data_controlled=True,
    ).eval()  # fmt: skip


class Control(DeviceFreeModule):
    """The control of every row: a spline, made of its coefficients.

    Parameters
    ----------
    spline, times
        See :func:`from_torchcde`.
    """

    def __init__(self, spline: Callable[..., Any], times: Tensor | None):
        super().__init__()
        self.spline = spline
        self.register_buffer("times", times)

    def forward(self, coeffs: Tensor) -> Any:
        """Return the spline of these coefficients."""
        return self.spline(coeffs) if self.times is None else self.spline(coeffs, self.times)


class ControlledField(Adapter):
    """f(t, z) dX/dt."""

    def __init__(self, func: nn.Module, control: Control):
        super().__init__(func)
        self.control = control

    def velocity(self, t: Tensor, z: Tensor, coeffs: Tensor) -> Tensor:  # type: ignore[override]
        matrix = self.model(t, z)
        slope = self.control(coeffs).derivative(t)
        return (matrix @ slope.to(z.dtype)[:, :, None]).squeeze(-1)


class InitialState(DeviceFreeModule):
    """The state at the start of the span, from the control there."""

    def __init__(self, initial: Callable[[Tensor], Tensor], control: Control, start: float):
        super().__init__()
        self.initial, self.control, self.start = initial, control, start

    def forward(self, coeffs: Tensor) -> Tensor:
        return self.initial(self.control(coeffs).evaluate(coeffs.new_tensor(self.start)))
