"""Export of a module to ONNX with a free batch axis. The file is written only if its outputs agree with torch's."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PARITY = {torch.float32: 1e-4, torch.float64: 1e-7}
"""Largest deviation of ONNX Runtime from torch, as a share of the output's largest magnitude.

The float64 limit is not tighter because attributes of ONNX operators, such as the slope of a leaky ReLU, are float32.
"""

_TRACED_ROWS = 3
_EXTRA = 'pip install "sklearn-hyper[onnx]"'


def _arguments(x: Tensor, condition: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """Return what a module is called with: rows, and their condition where there is one."""
    return (x, dict(condition)) if condition else (x,)


class WithProbabilities(nn.Module):
    """Return a module's outputs and their probabilities: their softmax, or ``head(outputs)`` if a head is given."""

    def __init__(self, module: nn.Module, head: nn.Module | None = None):
        super().__init__()
        self.module = module
        self.head = nn.Softmax(dim=-1) if head is None else head

    def forward(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        logits = self.module(*_arguments(x, condition))
        return logits, self.head(logits)


class FirstOutput(nn.Module):
    """Return the first entry of a module's output along the last axis, without that axis."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        return self.module(*_arguments(x, condition))[..., 0]


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the path to write to. Refuse one that cannot be a file, before any work is done."""
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        reason = "is a folder" if target.is_dir() else f"lies in {str(target.parent)!r}, which is no folder"
        raise ValueError(f"path={str(path)!r} {reason}; pass the name of a file, in a folder that exists.")
    return target


def require_onnx() -> None:
    """Raise an ImportError that names the extra to install if ONNX, its exporter or its runtime is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export_onnx needs onnx, onnxscript and onnxruntime ({error}): {_EXTRA}") from error


def write_onnx(
    module: nn.Module,
    x: Tensor,
    path: Path,
    *,
    outputs: Sequence[str],
    condition: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Export a module that is on the CPU in eval mode, compare it with torch on the rows of x, and write the file.

    Parameters
    ----------
    module : nn.Module
        Takes one tensor, and a condition where there is one; returns one tensor or a tuple of tensors. The batch axis
        comes first in all.
    x : Tensor of shape (n_samples, ...)
        Rows to compare on. The file's input is named ``X`` and takes any number of rows.
    path : Path
        An existing file is replaced only after the comparison has passed.
    outputs : sequence of str
        Names of the outputs.
    condition : mapping of str to Tensor of shape (n_samples, ...), optional
        Entries of the rows of x, which become inputs ``condition_NAME``.
    metadata : mapping of str to str, optional
        Stored in the file.

    Raises
    ------
    ValueError
        If torch cannot trace the module, or ONNX Runtime cannot run the result.
    RuntimeError
        If ONNX Runtime's outputs deviate from torch's by more than ``PARITY``.
    """
    condition = dict(condition or {})
    content = _export(module, x, condition, outputs, metadata or {})
    for rows in (slice(0, 1), slice(None)):
        _compare(module, content, x[rows], {name: value[rows] for name, value in condition.items()})
    replace_file(path, content)


def _export(
    module: nn.Module, x: Tensor, condition: dict[str, Tensor], outputs: Sequence[str], metadata: Mapping[str, str]
) -> bytes:
    # More than one row, because torch.export treats an axis of length 1 as a constant.
    rows, batch = torch.arange(_TRACED_ROWS) % len(x), {0: torch.export.Dim("batch")}
    example = _arguments(x[rows], {name: value[rows] for name, value in condition.items()})
    shapes: Any = (batch, dict.fromkeys(condition, batch)) if condition else (batch,)
    try:
        with _known_noise_removed(), torch.no_grad():
            traced = torch.export.export(module, example, dynamic_shapes=shapes)
            program = torch.onnx.export(
                traced, example, dynamo=True, verbose=False, input_names=[*_feeds(x, condition)],
                output_names=list(outputs), custom_translation_table=_exact_translations(),
            )  # fmt: skip
    except Exception as error:
        raise ValueError(
            "the hypersolver cannot be exported: torch could not trace it with a free batch axis. The vector field, "
            "the maps and a correction of your own must not branch on values (of the state or of time; torch.where is "
            f"fine) or on the batch size, nor leave torch (NumPy, .item()). {_reason(error)}"
        ) from error
    assert program is not None  # what torch.onnx.export returns with dynamo=True
    model = program.model_proto
    _strip(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def _exact_translations() -> dict[Any, Any]:
    """Return own translations of operators whose constants torch's exporter rounds to float32 in any dtype."""
    import onnx
    from onnxscript import opset18

    def constant(value: float, dtype: int) -> Any:
        return opset18.Constant(value=onnx.helper.make_tensor("", int(dtype), [], [value]))

    def scalar_tensor(
        s: float, dtype: int = onnx.TensorProto.FLOAT, layout: str = "", device: str = "", pin_memory: bool = False
    ) -> Any:
        return constant(s, dtype)

    def add(self: Any, other: Any, alpha: float = 1.0) -> Any:
        return opset18.Add(self, other if alpha == 1 else opset18.Mul(other, constant(alpha, other.dtype)))

    def clamp(self: Any, min: float | None = None, max: float | None = None) -> Any:
        if min is not None:
            self = opset18.Max(self, constant(min, self.dtype))
        return self if max is None else opset18.Min(self, constant(max, self.dtype))

    aten = torch.ops.aten
    return {aten.scalar_tensor.default: scalar_tensor, aten.add.Tensor: add, aten.clamp.default: clamp}


def _reason(error: Exception) -> str:
    """Return the text of the original exception, which the exporter wraps in its own report."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {str(cause).strip()}"


def _strip(model: Any) -> None:
    """Drop the exporter's notes on every node: stack traces that show paths of the exporting machine."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]
    for part in [graph, *graph.node, *graph.initializer, *graph.input, *graph.output]:
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _known_noise_removed() -> Iterator[None]:
    """Silence two messages of torch's exporter: its own deprecated check, and a note that torchvision is missing."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
            )
            yield
    finally:
        logger.removeFilter(wanted)


def _feeds(x: Tensor, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs of a file by name. Names of conditions have a prefix, for those of the graph are taken."""
    return {"X": x} | {f"condition_{name}": value for name, value in condition.items()}


def _compare(module: nn.Module, content: bytes, x: Tensor, condition: dict[str, Tensor]) -> None:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, _one_thread(), providers=["CPUExecutionProvider"])
        found = session.run(None, {name: value.numpy() for name, value in _feeds(x, condition).items()})
    except Exception as error:  # ONNX Runtime's exceptions have no public base class in common
        hint = " It lacks some float64 operators, convolutions among them: fit in float32." * (x.dtype == torch.float64)
        raise ValueError(f"ONNX Runtime cannot run the exported hypersolver: {error}.{hint}") from error
    with torch.no_grad():
        result = module(*_arguments(x, condition))
    expected = [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]
    for found_output, expected_output in zip(found, expected, strict=True):
        _check_parity(found_output, expected_output, PARITY[x.dtype])


def _check_parity(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    finite = np.isfinite(expected)
    if found.shape != expected.shape or not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        raise RuntimeError(
            f"ONNX Runtime gives shape {found.shape} where torch gives {expected.shape}, or is not finite elsewhere. "
            "No file was written."
        )
    deviation = np.abs(found - expected, where=finite, out=np.zeros_like(expected)).max(initial=0.0)
    largest = np.abs(expected, where=finite, out=np.zeros_like(expected)).max(initial=0.0)
    if not deviation <= tolerance * max(largest, np.finfo(expected.dtype).tiny):
        raise RuntimeError(
            f"ONNX Runtime deviates from torch by {deviation:.3g}, with outputs of up to {largest:.3g}; at most "
            f"{tolerance:g} of that is allowed for {expected.dtype}. No file was written."
        )


def _one_thread() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: warnings would go to stderr directly, where Python cannot filter them
    return options


def replace_file(path: Path, content: bytes) -> None:
    """Write to a temporary file beside the target and rename it, so that no reader sees an incomplete file.

    Raises
    ------
    OSError
        If the disk is full, the folder is read-only and the like. What was there stays.
    """
    # Threads have drafts of their own, too: two of them may write one file.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"path={str(path)!r} could not be written ({error.strerror or error}); what was there is as it was. "
            "Make room, or pass a path that can be written to",
        ) from error
    finally:
        draft.unlink(missing_ok=True)
