"""Files that hold a model as numbers and a JSON description. Reading one runs nothing that the file brings.

A file is a safetensors file. Its metadata hold the description, and a checksum of description and tensors. What a
description may name is looked up in closed lists, never imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .. import __version__
from .onnx_export import check_target, replace_file

FORMAT, FORMAT_VERSION = "sklearn_hyper", 1
MAX_EVALUATIONS, MAX_FOLDED_BYTES = 4096, 2**32
"""Limits of a solver in a file. It is folded evaluation by evaluation, and a file must not ask for a million copies."""
_MOST_COPIES = 8
"""Copies of a file's tensors that a model may take. A density holds its field four times."""
_SIZES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip
"""The dtypes of tensors in a file, and their names there."""


class ModelFileError(ValueError):
    """A model cannot be written to a file, or a file cannot be read as a model.

    Examples
    --------
    >>> import tempfile, pathlib, sklearn_hyper
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.safetensors"
    ...     _ = path.write_bytes(b"something else")
    ...     try:
    ...         sklearn_hyper.load(path)
    ...     except sklearn_hyper.ModelFileError as error:
    ...         print("refused")
    refused
    """


class TensorWriter:
    """Collects the tensors of a model, each content once, and names them for its description."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, tensor: Tensor, what: str) -> str:
        """Return the name of a tensor in the file. ``what`` names it in errors."""
        if tensor.layout != torch.strided or tensor.dtype not in _SIZES or tensor.is_meta:
            raise ModelFileError(
                f"{what} is a tensor of dtype {tensor.dtype} and layout {tensor.layout}, which a model file cannot "
                "hold; it takes dense real tensors. Use pickle, or change the module."
            )
        plain = tensor.detach().cpu().resolve_neg().contiguous().clone()
        key = (str(plain.dtype), tuple(plain.shape), hashlib.sha256(_bytes_of(plain)).digest())
        name = self._names.setdefault(key, f"t{len(self._names)}")
        self.tensors.setdefault(name, plain)
        return name


class TensorReader:
    """Gives out copies of a file's tensors by name, and counts their bytes.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self._left = _MOST_COPIES * sum(tensor.nbytes for tensor in tensors.values())

    def take(self, name: Any) -> Tensor:
        """Return a copy of a tensor."""
        if not isinstance(name, str) or name not in self._tensors:
            raise ModelFileError(f"its description names a tensor {name!r:.100}, which it does not hold")
        tensor = self._tensors[name]
        self._left -= tensor.nbytes
        if self._left < 0:
            raise ModelFileError(f"its description asks for more than {_MOST_COPIES} copies of its tensors")
        return tensor.clone()


def write_model(path: str | os.PathLike[str], model: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a description and its tensors; replace an older file only when the new one is complete.

    Raises
    ------
    ValueError
        If the path is a folder, or lies in none.
    OSError
        If the file cannot be written. What was there stays.
    """
    target = check_target(path)
    replace_file(target, pack_model(model, tensors))
    return target


def pack_model(model: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a model file."""
    described = {"format_version": FORMAT_VERSION, "library_version": __version__, "model": model}
    text = json.dumps(described | {"sha256": checksum(described, tensors)})
    # One key, because safetensors writes several in any order, and equal models should give equal files.
    return bytes(safetensors.torch.save(dict(tensors), metadata={FORMAT: text}))


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str, TensorReader]:
    """Return the description in a file, the version of this library that wrote it, and its tensors.

    Raises
    ------
    ModelFileError
        If it is no such file, or was changed since it was written.
    OSError
        If there is no file to read.
    """
    content = Path(path).read_bytes()
    with one_error(path):
        tensors = _read_tensors(content)
        description = json.loads(_read_text(content))
        if description.pop("sha256") != checksum(description, tensors):
            raise ModelFileError("its checksum does not fit its content: it was damaged or changed after save")
        if description["format_version"] != FORMAT_VERSION:
            raise ModelFileError(
                f"it has format_version {description['format_version']!r:.100}, and sklearn_hyper {__version__} reads "
                f"version {FORMAT_VERSION}; load it with the version that wrote it"
            )
        return dict(description["model"]), str(description["library_version"]), TensorReader(tensors)


@contextmanager
def one_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a damaged or foreign file leads to into a ModelFileError that names the file."""
    try:
        yield
    except Exception as error:  # a file that someone else wrote may be wrong in any way
        own = isinstance(error, ModelFileError)
        reason = str(error) if own else f"{type(error).__name__}: {error}"
        raise ModelFileError(
            f"path={str(path)!r} cannot be loaded: {' '.join(reason.split())[:2000].rstrip('.')}. Nothing was changed."
        ) from error


def _read_tensors(content: bytes) -> dict[str, Tensor]:
    """Return a file's tensors. The safetensors package checks that sizes and offsets fit the content."""
    tensors = safetensors.torch.load(content)
    for name, tensor in tensors.items():
        if tensor.dtype not in _SIZES:
            raise ModelFileError(f"it holds a tensor {name!r:.100} of dtype {tensor.dtype}")
    return dict(tensors)


def _read_text(content: bytes) -> str:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or FORMAT not in metadata:
        raise ModelFileError("it is a safetensors file, but not one of sklearn_hyper")
    return str(metadata[FORMAT])


def checksum(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a description and its tensors."""
    total = hashlib.sha256(json.dumps(described).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\n{name} {_SIZES[tensor.dtype]} {list(tensor.shape)}\n".encode())
        total.update(_bytes_of(tensor))
    return total.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
