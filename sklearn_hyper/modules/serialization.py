"""Device-free, address-free pickling of modules (and of the estimators that hold them).

A torch tensor pickles as its storage: with its device, so that a CUDA pickle fails on a CPU machine, and with its
memory address, so that ``joblib.hash`` of equal modules differs. Here every tensor is written as NumPy bytes instead,
and classes or lambdas defined in a notebook travel by value (cloudpickle), so that loky workers can load them.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn


def _rebuild_tensor(
    data: np.ndarray, dtype: str, shape: tuple[int, ...], requires_grad: bool, parameter: bool
) -> Tensor:
    if data.size:
        tensor = torch.from_numpy(data.copy()).view(getattr(torch, dtype)).reshape(shape)
    else:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    if parameter:
        return nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


class _NumpyPickler(cloudpickle.Pickler):
    """cloudpickle, with tensors written as NumPy arrays and device-free objects by their attributes."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            # Bytes, because NumPy lacks bfloat16; at least 1-d, because a 0-d tensor cannot be viewed as bytes.
            data = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            dtype = str(obj.dtype).removeprefix("torch.")
            arguments = (data, dtype, tuple(obj.shape), obj.requires_grad, isinstance(obj, nn.Parameter))
            return _rebuild_tensor, arguments
        if isinstance(obj, DeviceFree):
            # Within this pickler, not packed apart: what objects share stays shared, and cycles end.
            return _blank, (type(obj),), obj.__dict__, None, None, _set_attributes
        return super().reducer_override(obj)


def pack(state: Any) -> bytes:
    """Pickle ``state`` with its tensors as NumPy arrays on no device."""
    buffer = io.BytesIO()
    _NumpyPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(state)
    return buffer.getvalue()


def unpack(packed: bytes) -> Any:
    """Inverse of :func:`pack`; tensors come back on the CPU."""
    return pickle.loads(packed)


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    obj.__dict__.update(attributes)


def deepcopy_attributes(obj: Any, memo: dict[int, Any]) -> Any:
    """``__deepcopy__`` without the trip through pickle, which would lose devices and shared tensors."""
    clone = _blank(type(obj))
    memo[id(obj)] = clone
    _set_attributes(clone, copy.deepcopy(obj.__dict__, memo))
    return clone


class DeviceFree:
    """Pickles without devices or addresses (see this file's docstring); deep copies keep their device."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return unpack, (pack(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy_attributes(self, memo)


class DeviceFreeModule(DeviceFree, nn.Module):
    """A device-free ``nn.Module``."""
