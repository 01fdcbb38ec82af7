"""Corrections in model files: those of this library are built again, a user's net is supplied again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..numerics.methods import StepKind
from .closed_list import Reader, Writer, is_of
from .corrections import BoundedCorrection, ModuleCorrection, Units
from .corrections.changes import FullChanges, LowRankChanges, Schedule
from .corrections.contract import CorrectionNet, UserNet, as_net
from .corrections.layers import CorrectionLayout
from .corrections.nets import ConvCorrectionNet, GatedNet, MLPCorrectionNet
from .corrections.reach import ReachNet
from .corrections.scales import ErrorRanges
from .corrections.specs import MATRIX_GATE
from .corrections.weights import FieldWeights, WeightsAndTerm
from .described_modules import describe_state, read_state
from .model_file import ModelFileError
from .serialization import blank

_ROLE = "correction"
_NETS: dict[str, type[GatedNet]] = {kind.__name__: kind for kind in (MLPCorrectionNet, ConvCorrectionNet, ReachNet)}
_CHANGES: dict[str, tuple[str, ...]] = {"FullChanges": ("changes",), "LowRankChanges": ("ups", "downs")}
"""Classes of changes, and the lists of parameters that they hold."""


def describe_correction(correction: ModuleCorrection | None, writer: Writer) -> Any:
    """Describe a correction with its tensors."""
    if correction is None:
        return None
    if type(correction) is BoundedCorrection:
        return {"class": "BoundedCorrection", "net": _describe_net(correction.net, writer),
                "units": _describe_units(correction.units, writer)}  # fmt: skip
    if type(correction) is FieldWeights:
        changes = [_describe_changes(change, writer) for change in correction.changes]
        schedule = writer.describe(correction.schedule, "correction.schedule")
        return {"class": "FieldWeights", "changes": changes, "schedule": schedule, "recomputes": correction.recomputes}
    if type(correction) is WeightsAndTerm:
        parts = {name: describe_correction(getattr(correction, name), writer) for name in ("weights", "beside")}
        return {"class": "WeightsAndTerm", **parts}
    return _describe_own(correction, writer)


def read_correction(described: Any, reader: Reader) -> ModuleCorrection | None:
    """Return a correction from its description."""
    if described is None:
        return None
    if "template" in described:
        own = _read_own(described, reader)
        if not isinstance(own, ModuleCorrection):
            raise ModelFileError(f"correction must be a {described['was']:.100}, as saved, got {type(own).__name__}")
        return own
    return _READ[described["class"]](described, reader)


def _read_bounded(described: Mapping[str, Any], reader: Reader) -> ModuleCorrection:
    return BoundedCorrection(_read_net(described["net"], reader), _read_units(described["units"], reader))


def _read_weights(described: Mapping[str, Any], reader: Reader) -> ModuleCorrection:
    schedule = reader.read(described["schedule"], Schedule, "the correction's schedule")
    changes = [_read_changes(change, schedule.n_parts, reader) for change in described["changes"]]
    recomputes = reader.read(described["recomputes"], bool, "recomputes")
    return FieldWeights(changes, schedule, recomputes=recomputes)


def _read_both(described: Mapping[str, Any], reader: Reader) -> ModuleCorrection:
    weights, beside = (read_correction(described[name], reader) for name in ("weights", "beside"))
    if weights is None or beside is None:
        raise ModelFileError("its description of a correction lacks a part")
    return WeightsAndTerm(weights, beside)


_READ: dict[str, Callable[[Mapping[str, Any], Reader], ModuleCorrection]] = {
    "BoundedCorrection": _read_bounded, "FieldWeights": _read_weights, "WeightsAndTerm": _read_both,
}  # fmt: skip


# ---------------------------------------------------------------------- a user's own
def _describe_own(module: nn.Module, writer: Writer) -> dict[str, Any]:
    return {"template": _ROLE, "was": type(module).__name__, "state": describe_state(module, _ROLE, writer)}


def _read_own(described: Mapping[str, Any], reader: Reader) -> nn.Module:
    own = reader.template(described["template"], described.get("was"))
    if described["template"] != _ROLE or not isinstance(own, nn.Module):
        raise ModelFileError(f"correction must be an nn.Module, got {type(own).__name__}")
    read_state(own, described["state"], _ROLE, reader)
    return own


# ---------------------------------------------------------------------- nets beside the field
def _describe_units(units: Units, writer: Writer) -> dict[str, Any]:
    scales = [writer.add(units.scale(kind), "units.scale") for kind in units.kinds]
    plain = {"kinds": units.kinds, "cap": units.cap, "floor": units.floor}
    return {"scales": scales, "plain": writer.describe(plain, "units")}


def _read_units(described: Mapping[str, Any], reader: Reader) -> Units:
    plain = reader.read(described["plain"], dict[str, Any], "units")
    kinds, scales = plain["kinds"], [reader.take(name) for name in described["scales"]]
    fits = is_of(kinds, tuple[StepKind, ...]) and len(kinds) == len(scales)
    if not (fits and is_of(plain["cap"], float) and is_of(plain["floor"], float)):
        raise ModelFileError("its description of units is wrong")
    return Units(kinds, scales, cap=plain["cap"], floor=plain["floor"])


def _describe_net(net: CorrectionNet, writer: Writer) -> dict[str, Any]:
    if type(net) is UserNet:
        return _describe_own(net.module, writer)
    if not (isinstance(net, GatedNet) and type(net) is _NETS.get(type(net).__name__)):
        return _describe_own(net, writer)
    scales = {name: getattr(net.scales, name) for name in ("eps_max", "middle", "per_half", "errors")}
    described = {
        "class": type(net).__name__,
        "layout": writer.describe(net.layout, "correction.layout"),
        "scales": writer.describe(scales, "correction.scales"),
        "state": describe_state(net, _ROLE, writer),
    }
    if type(net) is ConvCorrectionNet:
        described["kernel_size"] = int(net.weights.shapes[0][-1])
    return described


def _read_net(described: Mapping[str, Any], reader: Reader) -> CorrectionNet:
    if "template" in described:
        return as_net(_read_own(described, reader))
    kind, layout = _NETS[described["class"]], reader.read(described["layout"], CorrectionLayout, "a net's layout")
    values = reader.take(described["state"]["weights.values"])
    if layout.depth > values.numel() or not _is_usual(layout, kind):
        raise ModelFileError(
            f"its description of a net has unusual sizes for {values.numel()} weights: {layout!r:.300}"
        )
    extra = {"kernel_size": reader.read(described["kernel_size"], int)} if kind is ConvCorrectionNet else {}
    with torch.device("meta"):
        net = kind.build(layout, **extra)  # type: ignore[attr-defined]
    read_state(net, described["state"], _ROLE, reader)
    scales = reader.read(described["scales"], dict[str, Any], "a net's scales")
    for name, hint in (("eps_max", float), ("middle", float), ("per_half", float), ("errors", ErrorRanges)):
        if not is_of(scales[name], hint):
            raise ModelFileError(f"its description of a net's {name} is wrong: {scales[name]!r:.100}")
        setattr(net.scales, name, scales[name])
    return net


def _is_usual(layout: CorrectionLayout, kind: type[GatedNet]) -> bool:
    """Return whether sizes fit each other as a spec makes them. Folding makes tensors of these sizes."""
    if layout.has_matrix_gate and (layout.n_state > MATRIX_GATE or layout.n_gate != layout.n_state**2):
        return False
    if not layout.has_matrix_gate and layout.n_gate not in (0, 1):
        return False
    if kind is MLPCorrectionNet:
        return math.prod(layout.state_shape) == layout.n_state
    return len(layout.state_shape) == 3 and layout.state_shape[0] == layout.n_state and not layout.has_matrix_gate


def folded_bytes(correction: ModuleCorrection | None, field_bytes: int) -> int:
    """Return about how many bytes an evaluation takes in a folded solver, of a field of ``field_bytes``."""
    if isinstance(correction, WeightsAndTerm):
        return folded_bytes(correction.weights, field_bytes) + folded_bytes(correction.beside, field_bytes)
    if isinstance(correction, FieldWeights):
        return field_bytes
    return 0 if correction is None else count_bytes(correction)


def count_bytes(module: nn.Module) -> int:
    """Return the bytes of all tensors of a module."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


# ---------------------------------------------------------------------- changes of the field's weights
def _describe_changes(change: nn.Module, writer: Writer) -> dict[str, Any]:
    assert isinstance(change, (FullChanges, LowRankChanges))
    return {
        "class": type(change).__name__,
        "shapes": [[name, list(shape)] for name, shape in change.shapes.items()],
        "state": describe_state(change, _ROLE, writer),
    }


def _read_changes(described: Mapping[str, Any], n_parts: int, reader: Reader) -> nn.Module:
    """Build changes around their tensors. Their constructors would make new ones from the field's."""
    name, shapes = described["class"], {one: torch.Size(shape) for one, shape in described["shapes"]}
    lists, state = _CHANGES[name], described["state"]
    change: Any = blank(FullChanges if name == "FullChanges" else LowRankChanges)
    nn.Module.__init__(change)
    change.shapes = shapes
    expected = {"units", *(f"{one}.{i}" for one in lists for i in range(len(shapes)))}
    if set(state) != expected:
        raise ModelFileError(f"its description of changed weights has the tensors {sorted(state)!r:.200}")
    for one in lists:
        setattr(change, one, nn.ParameterList(reader.take(state[f"{one}.{i}"]) for i in range(len(shapes))))
    change.register_buffer("units", reader.take(state["units"]))
    _check_changes(change, name, n_parts)
    return change


def _check_changes(change: Any, name: str, n_parts: int) -> None:
    """Refuse changes whose tensors do not fit the shapes of the weights that they change."""
    fits = tuple(change.units.shape) == (len(change.shapes),)
    for i, shape in enumerate(change.shapes.values()):
        width = shape[1:].numel() if len(shape) > 1 else 1
        rows = shape[0] if shape else 1
        if name == "FullChanges":
            flat = (rows, width) if len(shape) > 1 else (shape.numel(),)
            fits = fits and tuple(change.changes[i].shape) == (n_parts, *flat)
        else:
            up, down = change.ups[i], change.downs[i]
            rank = up.shape[-1] if up.ndim else 0
            fits = fits and (tuple(up.shape), tuple(down.shape)) == ((n_parts, rows, rank), (n_parts, rank, width))
    if not fits:
        raise ModelFileError("its tensors do not fit the weights that they change")
