"""What people bring, drawn by hypothesis: fields in every form a callable has, data in every form an array has.

Every field computes ``unit * tanh(W z / unit + b + ...)`` (or minus the gradient of a potential of that kind) with weights that are known,
so that each has a truth to compare with: :meth:`FieldCase.pure`, in float64, with no state and nothing written to.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Field(nn.Module):
    """The plain form; the others are made of it."""

    def __init__(self, net: nn.Module, unit: float):
        super().__init__()
        self.net, self.unit = net, unit

    def forward(self, t, z):
        return self.unit * torch.tanh(self.net(z / self.unit))

    def velocity(self, t, z):
        return self.forward(t, z)


class TimeField(Field):
    def forward(self, t, z):
        return self.unit * torch.tanh(self.net(z / self.unit) + 0.5 * t)


class ControlledField(Field):
    def forward(self, t, z, x):
        return self.unit * torch.tanh(self.net(z / self.unit) + 0.5 * x / self.unit)


class PotentialField(Field):
    """Minus the gradient of a potential, by autograd inside."""

    def forward(self, t, z):
        with torch.enable_grad():
            y = z if z.requires_grad else z.detach().requires_grad_(True)
            energy = self.unit**2 * torch.log(torch.cosh(self.net(y / self.unit))).sum()
            return -torch.autograd.grad(energy, y, create_graph=True)[0]


class FunctionalGradientField(Field):
    """The same by torch.func."""

    def forward(self, t, z):
        return -torch.func.grad(lambda y: self.unit**2 * torch.log(torch.cosh(self.net(y / self.unit))).sum())(z)


class InPlaceField(Field):
    """Works on z itself."""

    def forward(self, t, z):
        return self.net(z.div_(self.unit)).tanh_() * self.unit


class BufferField(Field):
    """Returns one tensor again and again."""

    out = None

    def forward(self, t, z):
        value = super().forward(t, z)
        if self.out is None or self.out.shape != value.shape or self.out.dtype != value.dtype:
            self.out = torch.empty_like(value).detach()
        self.out = self.out.detach()
        self.out.copy_(value)
        return self.out


class CachedField(Field):
    """Keeps a tensor of its last pass, graph and all."""

    def forward(self, t, z):
        self.last = self.net(z / self.unit)
        return self.unit * torch.tanh(self.last)


class ConstantField(nn.Module):
    """Weights as buffers: nothing to train."""

    def __init__(self, net: nn.Module, unit: float):
        super().__init__()
        self.register_buffer("weight", net.weight.detach().clone())
        self.register_buffer("bias", net.bias.detach().clone())
        self.unit = unit

    def forward(self, t, z):
        return self.unit * torch.tanh(multiply(z / self.unit, self.weight, self.bias))


class DropoutField(Field):
    """Left in training mode by its owner; a solver runs it in eval mode."""

    def __init__(self, net: nn.Module, unit: float):
        super().__init__(net, unit)
        self.dropout = nn.Dropout(0.5)

    def forward(self, t, z):
        return self.unit * torch.tanh(self.dropout(self.net(z / self.unit)))


class Holder:
    """An object that can be called and holds its module in a list."""

    def __init__(self, field: nn.Module):
        self.fields = [field]

    def __call__(self, t, z):
        return self.fields[0](t, z)


def multiply(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.conv2d(z, weight, bias) if weight.ndim == 4 else nn.functional.linear(z, weight, bias)


def plain_function(t, z, weight, bias, unit):
    return unit * torch.tanh(multiply(z / unit, weight.to(z), bias.to(z)))


def call_module(module, t, z):
    return module(t, z)


def enclose(module):
    """A function inside a function."""

    def field(t, z):
        return module(t, z)

    return field


def as_default(module):
    def field(t, z, module=module):
        return module(t, z)

    return field


MODULES: dict[str, type[nn.Module]] = {
    "module": Field,
    "time": TimeField,
    "controlled": ControlledField,
    "potential": PotentialField,
    "functional gradient": FunctionalGradientField,
    "in place": InPlaceField,
    "buffer": BufferField,
    "cached": CachedField,
    "constant": ConstantField,
    "dropout": DropoutField,
}
"""Forms that are modules themselves."""
HIDING: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "partial": lambda field: functools.partial(call_module, field),
    "partial of a partial": lambda field: functools.partial(functools.partial(call_module), field),
    "bound method": lambda field: field.velocity,
    "callable object": Holder,
    "closure": enclose,
    "default argument": as_default,
}
"""Forms that reach a module by another path."""
PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
FUNCTIONS = ("function", "partial of weights")
"""Forms without parameters: weights are tensors that the function was given."""
KINDS = (*MODULES, *HIDING, *PARAMETRIZED, *FUNCTIONS)
UNTRAINABLE = {*FUNCTIONS, "constant"}
MAY_BE_REFUSED = {"closure", "default argument"}
"""Forms that a fit may refuse, if it does so before any work and says what to do."""
GRADIENTS = {"potential", "functional gradient"}


@dataclass(frozen=True)
class FieldCase:
    """A field by its form; ``make`` gives a new one every time, with the same weights."""

    kind: str
    n_features: int
    is_image: bool
    dtype: torch.dtype
    unit: float
    seed: int

    def net(self) -> nn.Module:
        n, generator = self.n_features, torch.Generator().manual_seed(self.seed)
        weight = torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5
        bias = 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = (nn.Conv2d(n, n, 1) if self.is_image else nn.Linear(n, n)).to(self.dtype)
            with torch.no_grad():
                net.weight.copy_(weight.view_as(net.weight))
                net.bias.copy_(bias)
            if self.kind in PARAMETRIZED:
                net = PARAMETRIZED[self.kind](net)
        return net

    def make(self) -> tuple[Callable[..., Tensor], list[nn.Module]]:
        """The field as its owner passes it, and the modules of theirs that a fit must leave alone."""
        net = self.net()
        if self.kind in FUNCTIONS:
            given = {"weight": net.weight.detach(), "bias": net.bias.detach(), "unit": self.unit}
            if self.kind == "partial of weights":
                return functools.partial(plain_function, **given), []
            return lambda t, z: plain_function(t, z, **given), []
        field = MODULES.get(self.kind, Field)(net, self.unit)
        if self.kind == "cached":  # as a training step leaves it
            shape = (2, self.n_features, 3, 3) if self.is_image else (2, self.n_features)
            field(torch.zeros(()), torch.zeros(shape, dtype=self.dtype))
        return HIDING.get(self.kind, lambda module: module)(field), [field]

    @functools.cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        net = self.net().eval()
        return net.weight.detach().double(), net.bias.detach().double()

    def pure(self, t: float, z: Tensor, x: Tensor | None = None) -> Tensor:
        """What the field computes."""
        weight, bias = self._weights
        h = multiply(z / self.unit, weight, bias)
        if self.kind == "time":
            h = h + 0.5 * t
        if self.kind == "controlled":
            h = h + 0.5 * x / self.unit
        out = self.unit * torch.tanh(h)
        if self.kind in GRADIENTS:
            return -(torch.einsum("oi...,no...->ni...", weight.flatten(1), out))
        return out

    @property
    def has_dtype(self) -> bool:
        """Whether it says which dtype to compute in."""
        return self.kind not in FUNCTIONS


def solve(pure: Callable[..., Tensor], z: Tensor, t_span: tuple[float, float], x: Tensor | None = None) -> Tensor:
    """Terminal state in float64, by classical Runge-Kutta steps that leave errors of 1e-9 or so."""
    n_steps = 64
    h = (t_span[1] - t_span[0]) / n_steps
    for k in range(n_steps):
        t = t_span[0] + k * h
        a = pure(t, z, x)
        b = pure(t + h / 2, z + h / 2 * a, x)
        c = pure(t + h / 2, z + h / 2 * b, x)
        z = z + h / 6 * (a + 2 * b + 2 * c + pure(t + h, z + h * c, x))
    return z


# ---------------------------------------------------------------------- maps
def half_in_place(x):
    return x.mul_(0.5)


class ClipInPlace(nn.Module):
    """As a ReLU(inplace=True) is, in any unit."""

    def forward(self, z):
        z[z < 0] *= 0.1
        return z


def view_of_input(x):
    return x[:]


def _clip(z: Tensor) -> Tensor:
    return torch.where(z < 0, 0.1 * z, z)


MAPS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "none": (None, lambda z: z),
    "half in place": (half_in_place, lambda z: 0.5 * z),
    "module in place": (ClipInPlace(), _clip),
    "view": (view_of_input, lambda z: z),
}
"""Name: (the map as it is passed, what it computes)."""


# ---------------------------------------------------------------------- data
FLOATS = ("float64", "float32")
FORMS = ("C", "F", "reversed", "strided", "read-only", "list", "tensor", "frame")


@dataclass(frozen=True)
class DataCase:
    """Rows by their number, size and form."""

    n_rows: int
    shape: tuple[int, ...]
    dtype: str
    form: str
    unit: float
    seed: int

    def values(self) -> np.ndarray:
        """The rows themselves, as a plain array."""
        rng = np.random.default_rng(self.seed)
        size = (self.n_rows, *self.shape)
        if self.dtype == "int64":
            return rng.integers(-3, 4, size)
        return (self.unit * rng.uniform(-1, 1, size)).astype(self.dtype)

    def make(self) -> Any:
        """The rows as their owner passes them."""
        X = self.values()
        if self.form == "F":
            return np.asfortranarray(X)
        if self.form == "reversed":
            return X[::-1].copy()[::-1]
        if self.form == "strided":
            return np.repeat(X, 2, axis=0)[::2]
        if self.form == "read-only":
            X.flags.writeable = False
        elif self.form == "list":
            return X.tolist()
        elif self.form == "tensor":
            return torch.from_numpy(X)
        elif self.form == "frame":
            return pd.DataFrame(X, columns=[f"column {k}" for k in range(X.shape[1])])
        return X

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The rows as an estimator that computes in ``dtype`` sees them, in float64."""
        return torch.from_numpy(self.values()).to(dtype).double()

    @property
    def compute_dtype(self) -> torch.dtype:
        """What a field that names no dtype is solved in."""
        half = self.dtype == "float16" and self.form == "tensor"
        return torch.float32 if half or (self.dtype == "float32" and self.form != "list") else torch.float64


choices = st.integers(0, 2**24 - 1).map(random.Random)
"""Independent choices for all of an example: of a draw each, hypothesis would vary a few at a time, and repeat itself."""


def draw_problem(
    rng: random.Random,
    kinds: tuple[str, ...] = KINDS,
    *,
    images: bool = True,
    units: tuple[float, ...] = (1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12),
    widths: tuple[int, ...] = (2, 1, 3, 6),
    scaled_field: bool = True,
) -> tuple[FieldCase, DataCase]:
    """A field, and data in its unit (or, with ``scaled_field=False``, data alone in that unit)."""
    is_image = images and rng.random() < 0.2
    n_features = rng.choice(widths)
    dtype = rng.choice((*FLOATS, "float16", "int64"))
    unit = rng.choice(units) if dtype in FLOATS else 1.0
    shape = (n_features, 3, 3) if is_image else (n_features,)
    forms = tuple(form for form in FORMS if not (is_image and form == "frame"))
    kind = rng.choice(kinds)
    field = FieldCase(
        kind, n_features, is_image, rng.choice((torch.float64, torch.float32)),
        unit if scaled_field else 1.0, rng.randrange(100),
    )  # fmt: skip
    n_rows = rng.choice((12, 2, 3, 8, 24))
    return field, DataCase(n_rows, shape, dtype, rng.choice(forms), unit, rng.randrange(100))
