"""Ready-made vector fields and maps, which the estimators build if the user passes none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..numerics.times import check_t_span
from ..numerics.units import is_constant

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}

_UNIT_SPAN = (0.0, 1.0)


def _share(t: Tensor, t_span: tuple[float, float]) -> Tensor:
    """Return time as a share of the span."""
    return t if t_span == _UNIT_SPAN else (t - t_span[0]) / (t_span[1] - t_span[0])


def _velocity(change: Tensor, t_span: tuple[float, float]) -> Tensor:
    """Convert a change over the whole span into a change per unit of time."""
    return change if t_span == _UNIT_SPAN else change / (t_span[1] - t_span[0])


class MLPVectorField(nn.Module):
    """f(t, z) for vector states: a fully connected net, in which time shifts the bias of the first layer.

    Parameters
    ----------
    n_features : int
        Width of the state.
    hidden : int, default 64
        Width of the hidden layers.
    depth : int, default 2
        Number of hidden layers.
    t_span : pair of float, default (0.0, 1.0)
        The net gets time as a share of this span, and its output is a change over the span. So the units of time do not
        matter.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.modules import MLPVectorField
    >>> MLPVectorField(3)(torch.tensor(0.5), torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, n_features: int, hidden: int = 64, depth: int = 2, t_span: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        self.t_span = check_t_span(t_span)
        self.first = nn.Linear(n_features, hidden)
        self.time = nn.Parameter(torch.zeros(hidden))
        self.middle = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.last = nn.Linear(hidden, n_features)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        share = _share(t, self.t_span)
        if t.ndim:  # a time a row
            h = functional.linear(z, self.first.weight, self.first.bias) + share[:, None] * self.time
        else:
            h = functional.linear(z, self.first.weight, self.first.bias + share * self.time)
        h = torch.tanh(h)
        for layer in self.middle:
            h = torch.tanh(layer(h))
        return _velocity(self.last(h), self.t_span)


class ConvVectorField(nn.Module):
    """f(t, z) for image states (channels, height, width): 3x3 convolutions that keep the shape.

    Together with :class:`AugmentedInput` it gives the convolutional Neural ODE of the paper's section 4.1; see the
    examples.

    Parameters
    ----------
    channels : int
        Channels of the state.
    hidden : int, default 32
        Channels of the hidden layers.
    depth : int, default 1
        Number of hidden layers.
    activation : {"silu", "softplus", "tanh"}, default "silu"
        Applied between the convolutions. All choices are smooth: at a kink every solver has first order.
    t_span : pair of float, default (0.0, 1.0)
        See :class:`MLPVectorField`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.modules import ConvVectorField
    >>> ConvVectorField(8)(torch.tensor(0.0), torch.zeros(2, 8, 6, 6)).shape
    torch.Size([2, 8, 6, 6])

    On a CPU, convolve at a quarter of the resolution: the pixels of each 4 x 4 patch become channels. An MNIST
    classifier:

    >>> from torch import nn
    >>> from sklearn_hyper import NeuralODEClassifier
    >>> from sklearn_hyper.modules import AugmentedInput
    >>> patches = nn.Sequential(nn.PixelUnshuffle(4), nn.BatchNorm2d(16))
    >>> model = NeuralODEClassifier(
    ...     ConvVectorField(32, hidden=46, depth=2),
    ...     input_map=AugmentedInput(nn.Conv2d(16, 16, 3, padding=1), patches),
    ...     output_map=nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(32, 10)),
    ... )  # model.fit(X, y) takes X of shape (n, 1, 28, 28)

    The paper's classifier runs at full resolution, for a GPU (36 million multiply-accumulates per evaluation):

    >>> model = NeuralODEClassifier(
    ...     ConvVectorField(32, hidden=46, depth=2, activation="softplus"),
    ...     input_map=AugmentedInput(nn.Conv2d(1, 31, 3, padding=1), nn.BatchNorm2d(1)),
    ...     output_map=nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(32, 10)),
    ... )
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        depth: int = 1,
        activation: str = "silu",
        t_span: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        self.t_span = check_t_span(t_span)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}.")
        self.activation = activation
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.time = nn.Parameter(torch.zeros(hidden))
        self.middle = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(depth - 1))
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        share, first, bias = _share(t, self.t_span), self.first.weight, self.first.bias
        assert bias is not None  # Conv2d(bias=True)
        if t.ndim:  # a time a row
            h = functional.conv2d(z, first, bias, padding=1) + (share[:, None] * self.time)[:, :, None, None]
        else:
            h = functional.conv2d(z, first, bias + share * self.time, padding=1)
        activate = _ACTIVATIONS[self.activation]
        h = activate(h)
        for layer in self.middle:
            h = activate(layer(h))
        return _velocity(self.last(h), self.t_span)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class Standardize(nn.Module):
    """Fixed affine map (x - shift) / scale, per feature or channel.

    Parameters
    ----------
    shift, scale : Tensor
        In shape (features,) or (channels, 1, 1).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    @classmethod
    def from_data(cls, x: Tensor) -> Standardize:
        """Build the map from means and deviations of data, over all axes except the feature (or channel) axis.

        A feature that varies by no more than rounding counts as constant: it is divided by its magnitude instead.
        """
        axes, exact = [0, *range(2, x.ndim)], x.double()  # in float32 the squares of small values underflow
        shift, spread = exact.mean(dim=axes, keepdim=True)[0], exact.std(dim=axes, keepdim=True, unbiased=False)[0]
        size = shift.abs()
        size = torch.where(size > 0, size, torch.ones_like(size))
        scale = torch.where(is_constant(spread, shift.abs(), x.dtype), size, spread)
        return cls(shift.to(x.dtype), scale.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class Rescale(nn.Module):
    """Apply an output map, then a fixed affine map back to the targets' units: inner(z) * scale + shift.

    Parameters
    ----------
    inner : nn.Module
        The output map. It is trained on standardised targets.
    scale, shift : Tensor of shape (n_outputs,)
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, inner: nn.Module, scale: Tensor, shift: Tensor):
        super().__init__()
        self.inner = inner
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z) * self.scale + self.shift


class AugmentedInput(nn.Module):
    r"""Augment the input: :math:`h_x(x) = [x, \mathrm{lift}(x)]`, concatenated along features or channels.

    In the input space, trajectories cannot cross. Extra dimensions let them pass one another
    (Massaroli et al., 2020, *Dissecting Neural ODEs*, section 4).

    Parameters
    ----------
    lift : nn.Module
        A linear map to the added features, or a convolution to the added channels.
    scaler : nn.Module, optional
        Applied to x first, for example :class:`Standardize`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.modules import AugmentedInput
    >>> AugmentedInput(torch.nn.Linear(2, 3))(torch.zeros(4, 2)).shape
    torch.Size([4, 5])
    """

    def __init__(self, lift: nn.Module, scaler: nn.Module | None = None):
        super().__init__()
        self.scaler = nn.Identity() if scaler is None else scaler
        self.lift = lift

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaler(x)
        return torch.cat([x, self.lift(x)], dim=1)
