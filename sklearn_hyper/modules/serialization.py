"""Pickling of modules and estimators without devices and memory addresses.

A torch tensor pickles as its storage. That includes its device, so a CUDA pickle fails on a CPU machine. It also
includes a memory address, so ``joblib.hash`` differs for equal modules. Here every tensor is written as NumPy bytes
instead. Classes and lambdas from a notebook are pickled by value (cloudpickle), so that loky workers can load them.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .user_code import find_uncompiled, walk

_SPARSE_ROWS, _SPARSE_COLUMNS = (torch.sparse_csr, torch.sparse_bsr), (torch.sparse_csc, torch.sparse_bsc)


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


def _rebuild_sparse(parts: Sequence[Tensor], shape: tuple[int, ...], layout: str, requires_grad: bool) -> Tensor:
    how: dict[str, Any] = {"size": shape, "check_invariants": False}  # they held when the tensor was written
    if layout == "sparse_coo":
        tensor = torch.sparse_coo_tensor(parts[0], parts[1], is_coalesced=True, **how)
    else:
        tensor = torch.sparse_compressed_tensor(parts[0], parts[1], parts[2], layout=getattr(torch, layout), **how)
    return tensor.requires_grad_(requires_grad)


def _sparse_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the dense tensors that make up a sparse one."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    if tensor.layout in _SPARSE_ROWS:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


def _rebuild_scripted(data: bytes, requires_grad: list[bool], training: bool, device: str | None = "cpu") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated, but was the user's choice
        loaded = torch.jit.load(io.BytesIO(data), map_location=device)
    for parameter, required in zip(loaded.parameters(), requires_grad, strict=True):
        parameter.requires_grad_(required)
    return loaded.train(training)


def _reduce_scripted(module: Any) -> tuple[Any, ...]:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(module, buffer)
    if isinstance(module, torch.jit.ScriptFunction):
        return _rebuild_scripted, (buffer.getvalue(), [], False)
    return _rebuild_scripted, (buffer.getvalue(), [p.requires_grad for p in module.parameters()], module.training)


def _set_parametrized(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Restore a parametrized module. Torch makes a class for each one, which cannot be pickled, so make it anew."""
    module.__dict__.update(attributes)
    names = list(module.parametrizations)  # type: ignore[arg-type]
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)


class _NumpyPickler(cloudpickle.Pickler):
    """A cloudpickle pickler that writes tensors as NumPy arrays, and device-free objects by their attributes.

    It also writes some objects that pickle refuses: parametrized and scripted modules, and sparse tensors. Compiled
    modules are written uncompiled.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return self._reduce_tensor(obj)
        if isinstance(obj, DeviceFree):
            # Not by __reduce_ex__, which packs each object separately: within one pickler, shared objects stay shared
            # and cycles end.
            return blank, (type(obj),), obj.__dict__, None, None, _set_attributes
        if isinstance(obj, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            return _reduce_scripted(obj)
        if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            cls = parametrize.type_before_parametrizations(obj)
            return blank, (cls,), obj.__dict__, None, None, _set_parametrized
        uncompiled = find_uncompiled(obj)
        if uncompiled is not None:
            return _itself, (uncompiled,)
        return super().reducer_override(obj)

    def _reduce_tensor(self, obj: Tensor) -> tuple[Any, ...]:
        if obj.layout != torch.strided:
            layout = str(obj.layout).removeprefix("torch.")
            return _rebuild_sparse, (_sparse_parts(obj.detach()), tuple(obj.shape), layout, obj.requires_grad)
        # As bytes, because NumPy has no bfloat16. Flattened, because a 0-d tensor cannot be viewed as bytes.
        plain = obj.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = plain.view(torch.uint8).numpy()
        dtype = str(obj.dtype).removeprefix("torch.")
        return _rebuild_tensor, (data, dtype, tuple(obj.shape), obj.requires_grad, isinstance(obj, nn.Parameter))


def pack(state: Any) -> bytes:
    """Pickle ``state`` with its tensors as NumPy arrays on no device."""
    buffer = io.BytesIO()
    _NumpyPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(state)
    return buffer.getvalue()


def unpack(packed: bytes) -> Any:
    """Invert :func:`pack`. Tensors come back on the CPU."""
    return pickle.loads(packed)


def _itself(obj: Any) -> Any:
    return obj


def blank(cls: Any) -> Any:
    """Return an instance without attributes."""
    return cls.__new__(cls)


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    obj.__dict__.update(attributes)


# ---------------------------------------------------------------------- copies
def deepcopy_attributes(obj: Any, memo: dict[int, Any]) -> Any:
    """Implement ``__deepcopy__`` without pickling, which would lose devices and shared tensors."""
    _copy_uncopyable(obj, memo)
    clone = blank(type(obj))
    memo[id(obj)] = clone
    _set_attributes(clone, copy.deepcopy(obj.__dict__, memo))
    return clone


def share_tensors(module: nn.Module) -> Any:
    """Return a copy of a module, its parts and the objects that it holds, in which its tensors are the same ones."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    _copy_uncopyable(module, memo)
    return copy.deepcopy(module, memo)


def copy_user_code(value: Any, name: str) -> Any:
    """Return a deep copy, even of objects that ``copy.deepcopy`` refuses.

    Tensors of a graph (an activation that ``forward`` keeps, a weight of the old ``weight_norm``) are copied detached.
    Compiled modules are copied uncompiled. Scripted modules are copied as well. Plain functions are shared, as in
    ``copy.deepcopy``.

    Raises
    ------
    TypeError
        If something in it cannot be copied. The message suggests what to do.
    """
    memo: dict[int, Any] = {}
    try:
        _copy_uncopyable(value, memo)
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise TypeError(
            f"{name} cannot be copied, and fit works on a copy: {type(error).__name__}: {error}. Drop locks, open "
            "files and the like from the modules, or define __deepcopy__ on the class that holds them."
        ) from error


def _copy_uncopyable(value: Any, memo: dict[int, Any]) -> None:
    """Put copies that ``copy.deepcopy`` cannot make into its memo, where it looks them up instead."""
    found = [reached.value for reached in walk(value, "") if id(reached.value) not in memo]
    memo.setdefault(id(memo), []).extend(found)  # as deepcopy does: keep objects alive while the memo names them by id
    for obj in found:
        copied = _copy_of_uncopyable(obj)
        if copied is not None:
            memo.setdefault(id(obj), copied)
    # Compiled modules come last, because they may contain objects that were copied above.
    for obj in found:
        uncompiled = find_uncompiled(obj)
        if uncompiled is not None:
            memo.setdefault(id(obj), copy.deepcopy(uncompiled, memo))


def _copy_of_uncopyable(value: Any) -> Any:
    """Return a copy of an object that deepcopy refuses or copies wrongly, or None for all others."""
    if isinstance(value, torch.jit.ScriptModule):  # its own deep copy makes parameters that are not leaves
        rebuild, arguments = _reduce_scripted(value)
        return rebuild(*arguments, device=None)
    if isinstance(value, torch.jit.ScriptFunction):
        return value  # it has no state
    if isinstance(value, Tensor) and is_lazy(value):
        return None  # a lazy layer's tensor has no values yet
    if isinstance(value, Tensor) and (value.grad_fn is not None or value.is_inference() or _has_no_storage(value)):
        plain = value.detach().clone()
        plain = plain.requires_grad_(value.requires_grad and value.is_leaf)
        return nn.Parameter(plain, value.requires_grad) if isinstance(value, nn.Parameter) else plain
    return None


def _has_no_storage(tensor: Tensor) -> bool:
    return tensor.layout in (*_SPARSE_ROWS, *_SPARSE_COLUMNS)


# ---------------------------------------------------------------------- modules and objects
class DeviceFree:
    """An object that pickles without devices or addresses (see this file's docstring). Deep copies keep the device."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return unpack, (pack(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy_attributes(self, memo)


class DeviceFreeModule(DeviceFree, nn.Module):
    """A device-free ``nn.Module``."""
