"""Neural ODEs and flows in model files: our modules are built again, those of a user are supplied again.

Modules of the closed list are built without memory ("meta"), and get their tensors from the file, name by name. So a
file cannot ask for more memory than it has numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .closed_list import Reader, Writer, is_of
from .conditioned_fields import ConditionedMLPField
from .copies import freeze
from .divergence import AppendLogDensity, LogDensityField
from .flow import Flow
from .model_file import ModelFileError
from .neural_ode import PARTS, NeuralODE
from .vector_fields import AugmentedInput, ConvVectorField, MLPVectorField, Rescale, Standardize

_MOST_LAYERS = 10_000


class _Listed(NamedTuple):
    """A module class that a file may name: what is written of it beside its parts, and how it is built from that."""

    kind: type[nn.Module]
    describe: Callable[[Any], dict[str, Any]]
    build: Callable[..., nn.Module] | None = None
    """By default the class itself."""
    parts: tuple[str, ...] = ()
    """Attributes that hold further modules."""
    is_plain: Callable[[Any], bool] = lambda module: True
    """Whether it makes nothing that is much larger than its input and weights: a file must not ask for that."""


def _attributes(*names: str) -> Callable[[Any], dict[str, Any]]:
    return lambda module: {name: getattr(module, name) for name in names}


def _keeps_size(convolution: Any) -> bool:
    """Return whether a convolution pads by no more than keeps the size of an image."""
    padding, dilation, kernel = convolution.padding, convolution.dilation, convolution.kernel_size
    if isinstance(padding, str):
        return True
    return all(2 * p <= d * (k - 1) + 1 for p, d, k in zip(padding, dilation, kernel, strict=True))


def _empty(shape: Any) -> Tensor:
    return torch.empty(shape, device="meta")


_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_LISTED: dict[str, _Listed] = {
    one.kind.__name__: one
    for one in (
        *(_Listed(kind, _attributes()) for kind in (nn.Identity, nn.Tanh, nn.SiLU)),
        _Listed(nn.Softplus, _attributes("beta", "threshold")),
        _Listed(nn.Flatten, _attributes("start_dim", "end_dim")),
        _Listed(nn.PixelUnshuffle, _attributes("downscale_factor")),
        _Listed(nn.AvgPool2d, _attributes("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
        _Listed(nn.BatchNorm2d, _attributes("num_features", "eps", "momentum", "affine", "track_running_stats")),
        _Listed(
            nn.Linear, lambda m: _attributes("in_features", "out_features")(m) | {"bias": m.bias is not None}
        ),
        _Listed(
            nn.Conv2d,
            lambda m: _attributes(*_CONVOLUTION)(m) | {"bias": m.bias is not None},
            is_plain=_keeps_size,
        ),
        _Listed(
            MLPVectorField,
            lambda m: {
                "n_features": m.last.out_features, "hidden": m.first.out_features, "depth": len(m.middle) + 1,
                "t_span": m.t_span,
            },
        ),
        _Listed(
            ConditionedMLPField,
            lambda m: {
                "n_features": m.last.out_features, "hidden": m.first.out_features, "depth": len(m.middle) + 1,
                "t_span": m.t_span, "widths": m.widths, "n_labels": m.n_labels,
            },
            lambda widths, **values: ConditionedMLPField(
                condition={name: _empty((1, width)) for name, width in widths.items()}, **values
            ),
        ),
        _Listed(
            ConvVectorField,
            lambda m: {
                "channels": m.last.out_channels, "hidden": m.first.out_channels, "depth": len(m.middle) + 1,
                "activation": m.activation, "t_span": m.t_span,
            },
        ),
        _Listed(
            Standardize,
            lambda m: {"shift": list(m.shift.shape), "scale": list(m.scale.shape)},
            lambda shift, scale: Standardize(_empty(shift), _empty(scale)),
        ),
        _Listed(
            Rescale,
            lambda m: {"shift": list(m.shift.shape), "scale": list(m.scale.shape)},
            lambda inner, shift, scale: Rescale(inner, _empty(scale), _empty(shift)),
            ("inner",),
        ),
        _Listed(AugmentedInput, _attributes(), None, ("lift", "scaler")),
        _Listed(LogDensityField, _attributes("hutchinson", "penalties"), None, ("vector_field",)),
        _Listed(
            AppendLogDensity, _attributes("n_features", "n_zeros"), None, ("scaler",), lambda m: m.n_zeros in (1, 3)
        ),
    )
}  # fmt: skip
_WRAPPERS = (Rescale, LogDensityField, AppendLogDensity)
"""Modules that this library puts around those of a user, which the user does not supply."""


# ---------------------------------------------------------------------- modules and their tensors
def describe_module(module: Any, role: str, writer: Writer) -> dict[str, Any]:
    """Describe a module of the closed list, or leave it to the user, who supplies it as ``role``. No tensors."""
    listed = _LISTED.get(type(module).__name__)
    if type(module) is nn.Sequential and not _is_hooked(module):
        children = [describe_module(child, role, writer) for child in module]
        if all("template" not in child for child in children):
            return {"module": "Sequential", "children": children}
    elif listed is not None and type(module) is listed.kind and not _is_hooked(module) and listed.is_plain(module):
        parts = {name: describe_module(getattr(module, name), role, writer) for name in listed.parts}
        if isinstance(module, _WRAPPERS) or all("template" not in part for part in parts.values()):
            values = writer.describe(listed.describe(module), role)
            return {"module": listed.kind.__name__, "values": values, "parts": parts}
    return {"template": role, "was": type(module).__name__}


def _is_hooked(module: nn.Module) -> bool:
    """Return whether something else is run around its forward, as by an older ``weight_norm``, or in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def read_module(described: Any, role: str, reader: Reader) -> Any:
    """Return a module from its description, without its tensors. A user's own, where supplied, is taken as it is."""
    name = described.get("module")
    listed = None if name is None or name == "Sequential" else _LISTED[name]
    if "template" in described or (reader.supplied(role) and (listed is None or listed.kind not in _WRAPPERS)):
        if described.get("template", role) != role:
            raise ModelFileError(f"its description asks for a template {described['template']!r:.100} as {role}")
        return reader.template(role, described.get("was"))
    if listed is None:
        children = [read_module(child, role, reader) for child in described["children"]]
        return nn.Sequential(*children)
    parts = {part: read_module(described["parts"][part], role, reader) for part in listed.parts}
    values = reader.read(described["values"], dict[str, Any], role)
    if "depth" in values and not (isinstance(values["depth"], int) and values["depth"] <= _MOST_LAYERS):
        raise ModelFileError(f"its description of {role} has a depth of {values['depth']!r:.100}")
    with torch.device("meta"):
        module = (listed.build or listed.kind)(**parts, **values)
    if not listed.is_plain(module):
        raise ModelFileError(f"its description of {role} has a {name} of unusual sizes: {values!r:.200}")
    return module


def describe_state(module: nn.Module, what: str, writer: Writer) -> dict[str, str]:
    """Write all tensors of a module, and return their names in the file."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: writer.add(tensor, f"{what}.{name}") for name, tensor in named}


def read_state(module: nn.Module, state: Any, what: str, reader: Reader) -> None:
    """Give a module the tensors of the file, in the file's dtypes.

    Raises
    ------
    ModelFileError
        If it has tensors of other names or shapes.
    """
    named: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if set(named) != set(state):
        lacking, further = sorted(set(state) - set(named)), sorted(set(named) - set(state))
        raise ModelFileError(
            f"{what} has other tensors than the saved one: it lacks {lacking!r:.300} and has {further!r:.300} besides"
        )
    for name, tensor in named.items():
        saved = reader.take(state[name])
        fits = not is_lazy(tensor) and tensor.shape == saved.shape
        if not fits or tensor.is_floating_point() != saved.is_floating_point():
            found = "no shape yet" if is_lazy(tensor) else f"shape {tuple(tensor.shape)} and {tensor.dtype}"
            raise ModelFileError(
                f"{what}.{name} has {found}, and the saved one shape {tuple(saved.shape)} and {saved.dtype}"
            )
        if tensor.is_meta:
            _replace(module, name, saved)
        else:
            tensor.data = saved  # in place: other parts of a user's code may hold the same tensor


def _replace(module: nn.Module, path: str, value: Tensor) -> None:
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(value)
    else:
        owner._buffers[name] = value


def _refuse_subclass(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        raise ModelFileError(
            f"{type(module).__name__} is a class of your own, which a model file cannot name: it takes a "
            f"{kind.__name__} itself. Use pickle."
        )


# ---------------------------------------------------------------------- Neural ODEs
def describe_neural_ode(ode: NeuralODE, writer: Writer) -> dict[str, Any]:
    """Describe a Neural ODE with its tensors."""
    _refuse_subclass(ode, NeuralODE)
    plain = {name: getattr(ode, name) for name in ("t_span", "data_controlled", "state_size", "n_unitless")}
    return {
        "parts": {name: describe_module(part, name, writer) for name, part in ode.parts.items()},
        "plain": writer.describe(plain, "neural_ode"),
        "state": describe_state(ode, "neural_ode", writer),
    }


def read_neural_ode(described: Mapping[str, Any], reader: Reader, *, frozen: bool = True) -> NeuralODE:
    """Return a Neural ODE from its description: in eval mode, and frozen or to be trained further."""
    parts = {name: read_module(described["parts"][name], name, reader) for name in PARTS}
    plain = reader.read(described["plain"], dict[str, Any], "neural_ode")
    n_unitless = plain.pop("n_unitless")
    if not is_of(n_unitless, int):
        raise ModelFileError(f"its description of n_unitless is wrong: {n_unitless!r:.100}")
    ode = NeuralODE(**parts, **plain)
    ode.n_unitless = n_unitless
    read_state(ode, described["state"], "neural_ode", reader)
    return freeze(ode) if frozen else ode.eval()


# ---------------------------------------------------------------------- flows
def describe_flow(flow: Flow, writer: Writer) -> dict[str, Any]:
    """Describe a flow with its tensors. A base distribution is supplied again when loading."""
    _refuse_subclass(flow, Flow)
    plain = {name: getattr(flow, name) for name in ("n_features", "t_span", "data_size", "base_size")}
    scaler = None if flow.scaler is None else describe_module(flow.scaler, "scaler", writer)
    return {
        "vector_field": describe_module(flow.vector_field, "vector_field", writer),
        "scaler": scaler,
        "base": writer.describe(flow.base_distribution, "base_distribution", "base_distribution"),
        "plain": writer.describe(plain, "flow"),
        "state": describe_state(flow, "flow", writer),
    }


def read_flow(described: Mapping[str, Any], reader: Reader) -> Flow:
    """Return a flow from its description, in eval mode."""
    plain = reader.read(described["plain"], dict[str, Any], "flow")
    width, sizes = plain["n_features"], plain["base_size"]
    if not (is_of(width, int) and is_of(sizes, tuple[float, ...]) and width == len(sizes)):
        raise ModelFileError(f"its description of a flow has {width!r:.100} features of sizes {sizes!r:.100}")
    scaler = None if described["scaler"] is None else read_module(described["scaler"], "scaler", reader)
    flow = Flow(
        read_module(described["vector_field"], "vector_field", reader), n_features=width, t_span=plain["t_span"],
        scaler=scaler, base_distribution=reader.read(described["base"]),
    )  # fmt: skip
    flow.data_size, flow.base_size = plain["data_size"], sizes
    read_state(flow, described["state"], "flow", reader)
    return flow.eval()
