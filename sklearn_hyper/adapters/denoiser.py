"""Denoisers: diffusion models that predict noise, data or v."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..modules.neural_ode import NeuralODE
from ..modules.serialization import DeviceFreeModule
from .contract import Adapter, batch_times, fixed_for, per_row, split_condition, tensor_of

PREDICTIONS = ("eps", "x0", "v")


def from_denoiser(
    model: Callable[..., Any],
    prediction: str = "eps",
    *,
    schedule: Any,
    condition: Sequence[str] | str | Mapping[str, Any] | None = None,
) -> NeuralODE:
    r"""Return the probability-flow ODE of a diffusion model, in coordinates in which its field stays bounded.

    A model sees :math:`x = a x_0 + s\,\mathrm{eps}`. The state of the ODE is :math:`u = x / (a + s)` and its time
    :math:`\tau = s / (a + s)`, so that :math:`u = (1 - \tau) x_0 + \tau\,\mathrm{eps}` and

    .. math:: \frac{du}{d\tau} = \widehat{\mathrm{eps}} - \hat x_0

    whatever the schedule. Data and noise are both about 1 in size, and so is their difference; in log sigma, states
    of a variance-exploding model grow with sigma, and their derivatives with them.

    Parameters
    ----------
    model : nn.Module or callable
        ``model(x, t)`` with a time a row; returns a tensor, a tuple that begins with one, or an object whose ``sample``
        is one. It is copied and frozen.
    prediction : {"eps", "x0", "v"}, default "eps"
        What it returns: the noise, the denoised data, or :math:`v = a\,\mathrm{eps} - s x_0`.
    schedule : Tensor, scheduler, or pair of float
        - Cumulative products of alpha, in the order of their timesteps 0, 1, ..., or an object with them as
          ``alphas_cumprod``, as diffusers' schedulers are: :math:`a^2` is alpha, :math:`s^2 = 1 - a^2`, and the model
          gets timesteps, between which the schedule is interpolated.
        - The pair (smallest sigma, largest sigma): :math:`a = 1`, :math:`s = \sigma`, and the model gets sigma (EDM).
    condition : str, sequence of str, or mapping, optional
        As in :func:`from_velocity`.

    Returns
    -------
    NeuralODE
        In eval mode. Its input is x at the most noise: standard normal draws, times sigma for a pair; its output is x
        at the least.

    Raises
    ------
    ValueError
        If ``prediction`` or ``schedule`` is wrong, or "v" goes with a pair of sigmas.
    TypeError
        As :class:`Adapter`.

    Notes
    -----
    With "eps", an error of the model counts a / s times where there is nearly no signal. Schedules that end at a = 0
    exactly (zero terminal signal) need "v" or "x0".

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.adapters import from_denoiser
    >>> def denoise(x, sigma):  # the exact denoiser of standard normal data
    ...     return x / (1 + sigma[:, None] ** 2)
    >>> ode = from_denoiser(denoise, "x0", schedule=(0.002, 80.0))
    >>> noise = 80 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> round(ode(noise).std().item(), 1)
    1.0
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}.")
    free, fixed = split_condition(condition)
    levels = _levels(schedule)
    if prediction == "v" and isinstance(levels, SigmaLevels):
        raise ValueError("prediction='v' with a pair of sigmas: v is defined where a^2 + s^2 = 1; pass alphas_cumprod.")
    if prediction == "eps" and levels.span[0] >= 1:
        raise ValueError(
            "prediction='eps' with a schedule whose last alpha is 0: the noise alone says nothing of the data there. "
            "Leave the last timestep out, or use a model that predicts 'v' or 'x0'."
        )
    field = DenoiserField(model, prediction, levels, conditions=free, fixed=fixed)
    start, end = levels.span
    return NeuralODE(
        field, input_map=Scale(1 / levels.total(start)), output_map=Scale(levels.total(end)), t_span=levels.span
    ).eval()


def _levels(schedule: Any) -> AlphaLevels | SigmaLevels:
    """Return the noise levels that a schedule stands for."""
    alphas = getattr(schedule, "alphas_cumprod", schedule)
    if isinstance(alphas, (tuple, list)) and len(alphas) == 2:
        try:
            low, high = map(float, alphas)
        except (TypeError, ValueError):
            low = high = math.nan
        if not 0 < low < high < math.inf:
            raise ValueError(f"schedule={schedule!r} must be (smallest sigma, largest sigma), numbers above 0.")
        return SigmaLevels(low, high)
    try:
        alphas = torch.as_tensor(alphas).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        alphas = torch.zeros(0)
    falls = alphas.ndim == 1 and len(alphas) > 2 and bool((alphas.diff() < 0).all())
    if not (falls and float(alphas[-1]) >= 0 and float(alphas[0]) < 1):
        raise ValueError(
            "schedule must be (smallest sigma, largest sigma), or cumulative products of alpha that fall from below 1 "
            f"to 0 or above, or an object with those as alphas_cumprod, got {_describe(schedule, alphas)}. Schedulers "
            "of rectified flow have none: their models are for from_velocity."
        )
    return AlphaLevels(alphas)


def _describe(schedule: Any, alphas: Tensor) -> str:
    kind = type(schedule).__name__
    if alphas.ndim != 1 or len(alphas) < 3:
        return kind
    rises = bool((alphas.diff() > 0).all())
    advice = ": of betas pass (1 - betas).cumprod(0), of alphas from noise to data their reverse" if rises else ""
    return f"{kind} of {len(alphas)} numbers from {float(alphas[0]):.4g} to {float(alphas[-1]):.4g}{advice}"


class SigmaLevels(DeviceFreeModule):
    """Noise levels of x = x0 + sigma eps, of a model that gets sigma."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.span = (high / (1 + high), low / (1 + low))

    def total(self, tau: Any) -> Any:
        """Return a + s."""
        return 1 / (1 - tau)

    def model_time(self, tau: Tensor) -> Tensor:
        """Return what the model gets as its time."""
        return tau / (1 - tau)


class AlphaLevels(DeviceFreeModule):
    """Noise levels of x = a x0 + s eps with a^2 + s^2 = 1, of a model that gets timesteps."""

    knots: Tensor
    slopes: Tensor

    def __init__(self, alphas: Tensor):
        super().__init__()
        a, s = alphas.sqrt(), (1 - alphas).sqrt()
        knots = s / (a + s)
        self.span = (float(knots[-1]), float(knots[0]))
        # Timesteps are integers at the knots, and a smooth function of tau between: cubic pieces with the slopes of
        # central differences, so that adaptive solvers meet no kinks.
        steps = torch.arange(len(knots), dtype=knots.dtype)
        slopes = torch.gradient(steps, spacing=(knots,))[0]
        self.register_buffer("knots", knots.float())
        self.register_buffer("slopes", slopes.float())

    def total(self, tau: Any) -> Any:
        """Return a + s."""
        return ((1 - tau) ** 2 + tau**2) ** -0.5

    def model_time(self, tau: Tensor) -> Tensor:
        """Return the timestep, a real number."""
        last = len(self.knots) - 2
        i = (torch.searchsorted(self.knots, tau.to(self.knots.dtype)) - 1).clamp(0, last)
        width = self.knots[i + 1] - self.knots[i]
        w = ((tau.to(self.knots.dtype) - self.knots[i]) / width).clamp(0, 1)
        inner = w * (1 - w) * (width * self.slopes[i] * (1 - w) - width * self.slopes[i + 1] * w)
        return i + w * w * (3 - 2 * w) + inner


class DenoiserField(Adapter):
    """A denoiser as the field of (u, tau). See :func:`from_denoiser` for the parameters."""

    def __init__(
        self,
        model: Callable[..., Any],
        prediction: str,
        levels: AlphaLevels | SigmaLevels,
        *,
        conditions: Sequence[str],
        fixed: Mapping[str, Any],
    ):
        super().__init__(model, conditions=conditions)
        self.prediction, self.levels, self.fixed = prediction, levels, dict(fixed)

    def velocity(self, t: Tensor, z: Tensor, **condition: Any) -> Tensor:  # type: ignore[override]
        given = {**condition, **{name: fixed_for(value, z) for name, value in self.fixed.items()}}
        tau, total = per_row(t, z), per_row(self.levels.total(t), z)
        output = tensor_of(self.model(z * total, batch_times(self.levels.model_time(t), z), **given))
        if self.prediction == "eps":
            return (output - z) / (1 - tau)
        if self.prediction == "x0":
            return (z - output) / tau
        return (2 * tau - 1) * total**2 * z + total * output

    def model_times(self, times: Sequence[float]) -> list[float]:
        """Return what the model gets as its time at these times."""
        return self.levels.model_time(torch.tensor(list(times), dtype=torch.float64)).double().tolist()


class Scale(DeviceFreeModule):
    """Multiply by a number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
