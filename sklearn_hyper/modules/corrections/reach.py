"""A thin correction of long reach for images: what two evaluations of a convolutional field cannot see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...numerics.methods import StepKind, StepPlan
from .building import CorrectionSpec, NetInputs, is_positive_integer
from .folded import fold_image_inputs
from .layers import CorrectionLayout
from .nets import ConvCorrectionNet
from .specs import image_channels, layout_of

_NEAR, _FAR, _DILATION = 7, 5, 3
"""Kernel sizes of the two depthwise convolutions, and the dilation of the second."""

Layers = Sequence[tuple[Tensor, Tensor]]


def look_around(h: Tensor, layers: Layers) -> Tensor:
    """Mix channels, look around at each of them on its own in three ways, and mix again."""
    (mix, mix_bias), (near, near_bias), (far, far_bias), (last, last_bias) = layers
    h = functional.silu(functional.conv2d(h, mix, mix_bias))
    n = h.shape[1]
    views = [
        h,
        functional.conv2d(h, near, near_bias, padding=_NEAR // 2, groups=n),
        functional.conv2d(h, far, far_bias, padding=_DILATION * (_FAR // 2), dilation=_DILATION, groups=n),
        h.mean(dim=(2, 3), keepdim=True).expand_as(h),
    ]
    return functional.conv2d(functional.silu(torch.cat(views, dim=1)), last, last_bias)


class ReachNet(ConvCorrectionNet):
    """Reads scaled features of a step as :class:`ConvCorrectionNet` does; its layers: :func:`look_around`."""

    @classmethod
    def build(cls, layout: CorrectionLayout) -> Self:  # type: ignore[override]
        """Return a new net with this layout."""
        n = layout.hidden
        layers = [
            nn.Conv2d(layout.n_in, n, 1),
            nn.Conv2d(n, n, _NEAR, groups=n),
            nn.Conv2d(n, n, _FAR, groups=n),
            nn.Conv2d(4 * n, layout.n_state, 1),
        ]
        return cls.from_layers(layout, layers)

    def forward(
        self, eps: Any, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None, kind: StepKind
    ) -> Tensor:
        h = self.scales.normalize(self._join(self._features(eps, z, stages, x, kind)))
        return look_around(h, self.weights.at(self.terms(eps, s, kind)))

    def fold(self, plan: StepPlan, scale: Tensor) -> nn.Module:
        (mix, bias), *inner, last = self.weights.at(self.terms_of(plan))
        first = fold_image_inputs(mix, self.scales.scale, self.layout, self.slopes_of(plan)), bias
        size = scale.expand(self.layout.state_shape)[:, 0, 0]
        return FoldedReach([first, *inner, (last[0] * size.reshape(-1, 1, 1, 1), last[1] * size)])


class FoldedReach(nn.Module):
    """The net in one step: it reads z and the raw stages, and ignores eps and s."""

    def __init__(self, layers: Layers):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight.detach().clone(), False) for weight, _ in layers)
        self.biases = nn.ParameterList(nn.Parameter(bias.detach().clone(), False) for _, bias in layers)

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        """Return g times the output scale."""
        inputs = torch.cat([z, *([] if x is None else [x]), *stages], dim=1)
        return look_around(inputs, list(zip(self.weights, self.biases, strict=True)))


@dataclass
class ReachCorrection(CorrectionSpec):
    """A thin convolutional correction that sees far, for image states.

    A convolution of 3 x 3 carries news by one pixel. dopri5's fifty evaluations reach across an image, two of a
    hypersolver do not. This net mixes the channels of state and stages into a few, looks at each through a kernel of
    7 x 7, one of 5 x 5 with gaps of three pixels, and a mean over the image, and mixes the results. For a field of 32
    channels it costs a twentieth of an evaluation. It adds what bent weights of f cannot reach: see ``beside`` of
    :class:`WeightCorrection`.

    Parameters
    ----------
    hidden : int, default 8
        Number of channels that are looked at.

    Examples
    --------
    >>> from sklearn_hyper import ReachCorrection, WeightCorrection
    >>> WeightCorrection(beside=ReachCorrection(hidden=4)).get_params()["beside__hidden"]
    4
    """

    hidden: int = 8

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        return {"hidden": self.hidden}

    def macs(self, z: Tensor) -> int:
        """Return about how many multiply-accumulates a step takes for a state like one of ``z``."""
        channels, area = z.shape[1], z.shape[2] * z.shape[3]
        return area * int(self.hidden) * (3 * channels + _NEAR**2 + _FAR**2 + 4 * channels)

    def build(self, inputs: NetInputs) -> nn.Module:
        """Build the net for states, stages and inputs of these sizes.

        Raises
        ------
        ValueError
            If ``hidden`` is no positive integer, the states are no images, or x is no image of their size.
        """
        if not is_positive_integer(self.hidden):
            raise ValueError(f"ReachCorrection.hidden must be an integer >= 1, got {self.hidden!r}.")
        channels = image_channels(inputs, "ReachCorrection")
        return ReachNet.build(
            layout_of(
                inputs, *channels, "ReachCorrection",
                hidden=int(self.hidden), n_gate=0, has_matrix_gate=False,
                depth=2, activation=nn.SiLU, reads_tableau=False,
            )
        )  # fmt: skip
