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
    tensor = torch.from_numpy(data.copy()).view(getattr(torch, dtype)).reshape(shape)
    if parameter:
        return nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


class _NumpyPickler(cloudpickle.Pickler):
    """cloudpickle, with tensors written as NumPy arrays; shared (tied) tensors stay shared."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            # Bytes, because NumPy lacks bfloat16; at least 1-d, because a 0-d tensor cannot be viewed as bytes.
            data = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            dtype = str(obj.dtype).removeprefix("torch.")
            arguments = (data, dtype, tuple(obj.shape), obj.requires_grad, isinstance(obj, nn.Parameter))
            return _rebuild_tensor, arguments
        return super().reducer_override(obj)


def pack(state: Any) -> bytes:
    """Pickle ``state`` with its tensors as NumPy arrays on no device."""
    buffer = io.BytesIO()
    _NumpyPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(state)
    return buffer.getvalue()


def unpack(packed: bytes) -> Any:
    """Inverse of :func:`pack`; tensors come back on the CPU."""
    return pickle.loads(packed)


def deepcopy_attributes(obj: Any, memo: dict[int, Any]) -> Any:
    """``__deepcopy__`` without the trip through ``__getstate__``, which would lose devices and shared tensors."""
    clone = obj.__class__.__new__(obj.__class__)
    memo[id(obj)] = clone
    clone.__dict__.update(copy.deepcopy(obj.__dict__, memo))
    return clone


class DeviceFreeModule(nn.Module):
    """An ``nn.Module`` that pickles without devices or addresses (see this file's docstring)."""

    def __getstate__(self) -> dict[str, Any]:
        return {"packed": pack(self.__dict__)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(unpack(state["packed"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceFreeModule:
        return deepcopy_attributes(self, memo)
