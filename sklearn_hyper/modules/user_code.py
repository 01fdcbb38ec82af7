"""Find everything that a user's callable reaches: modules, tensors, functions, objects and constants.

A vector field may be a module, a function, a bound method, a ``functools.partial`` or any object with ``__call__``.
What it computes depends on all that it *reaches* through attributes, list entries, closures, defaults and globals. A
fit has to copy and freeze all of it, and a cache key has to include it. Both use :func:`walk`.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Classes and functions of these libraries cannot hold a user's module, so they are skipped. Instances can, and are not.
_LIBRARIES = frozenset(
    {
        *sys.stdlib_module_names,
        "torch",
        "numpy",
        "scipy",
        "sklearn",
        "skorch",
        "torchdiffeq",
        "pandas",
        "joblib",
        "tqdm",
    }
    - {"__main__"}
)
_OURS = __name__.partition(".")[0]
_LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, range)
_UNREAD = frozenset({"_parameters", "_buffers", "_modules", "_compiled_call_impl", "__weakref__"})
"""Attributes of a module that are read separately, or not at all (a compiled call is rebuilt from the module)."""

_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.BuiltinFunctionType,
)


class Reached(NamedTuple):
    """Something that a callable reaches."""

    path: str
    """How it is reached, as in ``vector_field.layers[0]``."""
    value: Any
    in_function: bool
    """Whether a function holds it, in a closure, a default or a global. A deep copy does not enter functions."""


def walk(root: Any, name: str, *, constants: bool = False) -> Iterator[Reached]:
    """Yield everything that ``root`` reaches, including itself. With ``constants``, yield numbers and strings too.

    Python code is followed from ``__call__`` and ``forward`` on. That covers the globals it loads, the modules it
    imports, and the methods and class attributes whose names it reads. Names that are computed at run time (``getattr``
    of a joined string) and globals of installed packages are not followed.
    """
    return _Walk(constants).run(root, name)


class _Walk:
    def __init__(self, constants: bool) -> None:
        self.constants = constants
        self.queue: deque[Reached] = deque()
        self.seen: dict[tuple[int, bool], Any] = {}  # keeps the values alive, so that no id is used twice
        # Names that the code found so far may call. Code that is found later adds names, so all instances and classes
        # are kept, to look the new names up in them.
        self.called = {"__call__", "forward"}
        self.instances: list[Reached] = []

    def run(self, root: Any, name: str) -> Iterator[Reached]:
        self._add(name, root, False)
        while self.queue:
            reached = self.queue.popleft()
            yield reached
            self._enter(*reached)

    def _add(self, path: str, value: Any, in_function: bool) -> None:
        key = (id(value), in_function)
        # A value that is reached both inside and outside a function is yielded once for each.
        if key in self.seen or isinstance(value, types.ModuleType):
            return
        if isinstance(value, _LEAVES) and not self.constants:
            return
        if isinstance(value, type) and _is_library(value.__module__):
            return
        self.seen[key] = value
        self.queue.append(Reached(path, value, in_function))

    def _add_all(self, path: str, items: Iterable[tuple[Any, Any]], in_function: bool) -> None:
        for key, value in items:
            self._add(f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]", value, in_function)

    def _enter(self, path: str, value: Any, in_function: bool) -> None:
        if isinstance(value, (*_LEAVES, Tensor, torch.jit.ScriptModule)):
            return
        uncompiled = find_uncompiled(value)
        if uncompiled is not None:
            self._add(path, uncompiled, in_function)
            return
        if isinstance(value, functools.partial):
            self._add(path, value.func, in_function)
            self._add_all(f"{path}.args", enumerate(value.args), in_function)
            self._add_all(path, value.keywords.items(), in_function)
        elif isinstance(value, types.MethodType):
            self.called.add(getattr(value.__func__, "__name__", "__call__"))
            self._add(f"{path}.__self__", value.__self__, in_function)
            self._add(path, value.__func__, in_function)
        elif isinstance(value, types.FunctionType):
            self._enter_function(path, value)
            self._add_all(path, vars(value).items(), True)
        elif isinstance(value, dict):
            self._add_all(path, ((k, v) for k, v in value.items()), in_function)
        elif isinstance(value, (list, tuple, deque)):
            self._add_all(path, enumerate(value), in_function)
        elif isinstance(value, (set, frozenset)):
            self._add_all(path, enumerate(sorted(value, key=repr)), in_function)
        elif isinstance(value, type):
            self._enter_class(Reached(path, value, True))
        elif isinstance(value, nn.Module) or not _is_opaque(type(value)):
            self._enter_instance(path, value, in_function)

    def _enter_instance(self, path: str, value: Any, in_function: bool) -> None:
        attributes = getattr(value, "__dict__", {})
        if isinstance(value, nn.Module):
            for kind in ("_parameters", "_buffers", "_modules"):
                self._add_all(path, attributes.get(kind, {}).items(), in_function)
        self._add_all(path, ((k, v) for k, v in attributes.items() if k not in _UNREAD), in_function)
        for slot in _slots(type(value)):
            if hasattr(value, slot):
                self._add(f"{path}.{slot}", getattr(value, slot), in_function)
        self._enter_class(Reached(path, value, in_function))

    def _enter_class(self, instance: Reached) -> None:
        self.instances.append(instance)
        self._enter_methods(instance, self.called)

    def _enter_methods(self, instance: Reached, names: Iterable[str]) -> None:
        """Add the methods and class attributes with these names, of a class or of an instance's class."""
        of = instance.value if isinstance(instance.value, type) else type(instance.value)
        for cls in of.__mro__:
            if not _is_library(cls.__module__):
                for name in sorted(set(names) & vars(cls).keys()):
                    path, attribute = f"{instance.path}.{name}", vars(cls)[name]
                    function = _function_of(attribute)
                    if function is not None:
                        self._add(path, function, instance.in_function)
                    elif not isinstance(attribute, _DESCRIPTORS):
                        self._add(path, attribute, True)  # it belongs to the class, so a copy of the instance shares it

    def _enter_function(self, path: str, function: types.FunctionType) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._add_all(path, ((name, cell.cell_contents) for name, cell in cells if _is_filled(cell)), True)
        self._add_all(path, zip(_default_names(function), function.__defaults__ or (), strict=True), True)
        self._add_all(path, (function.__kwdefaults__ or {}).items(), True)
        if _is_library(function.__module__):
            return
        names = _names(function.__code__)
        scope = function.__globals__
        for name in sorted(names.loaded & scope.keys()):
            self._enter_module(name, scope[name], names)
            self._add(f"{path}.{name}", scope[name], True)
        for name in names.imported & sys.modules.keys():
            self._enter_module(name, sys.modules[name], names)
        # An attribute of a library's module (torch.log) does not refer to a user's method of that name.
        read = {name for first, name in names.read if not _is_library_module(scope.get(first))}
        new = read - self.called
        self.called |= new
        for instance in list(self.instances):
            self._enter_methods(instance, new)

    def _enter_module(self, path: str, value: Any, names: _Names) -> None:
        """Add what code reads from a user's Python module and from its submodules."""
        if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
            for name in sorted({name for _, name in names.read} & vars(value).keys()):
                inner = vars(value)[name]
                if isinstance(inner, types.ModuleType) and inner.__name__.startswith(f"{value.__name__}."):
                    self._enter_module(f"{path}.{name}", inner, names)
                self._add(f"{path}.{name}", inner, True)


def _is_library_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and _is_library(value.__name__)


@functools.cache
def _is_library(module: str | None) -> bool:
    """Return whether code belongs to an installed package. Its globals are not the user's and may lead anywhere."""
    root = (module or "").partition(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in _LIBRARIES or root == _OURS or "site-packages" in file or "dist-packages" in file


def _is_opaque(cls: type) -> bool:
    """Return whether instances are internals of a numerical library, which hold no user code."""
    root = cls.__module__.partition(".")[0]
    return root in ("numpy", "scipy", "pandas") or (root == "torch" and "distributions" not in cls.__module__)


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        if not _is_library(base.__module__):
            slots = vars(base).get("__slots__", ())
            yield from ((slots,) if isinstance(slots, str) else slots)


def _function_of(attribute: Any) -> types.FunctionType | None:
    """Return the function behind a method, static method or property of a class, or None."""
    attribute = getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute)
    attribute = getattr(attribute, "__wrapped__", attribute)
    return attribute if isinstance(attribute, types.FunctionType) else None


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the name is not bound yet
        return False


def _default_names(function: types.FunctionType) -> tuple[str, ...]:
    n_defaults = len(function.__defaults__ or ())
    code = function.__code__
    return code.co_varnames[code.co_argcount - n_defaults : code.co_argcount]


class _Names(NamedTuple):
    """Names that code uses, including the functions defined inside it."""

    loaded: frozenset[str]
    """Globals."""
    imported: frozenset[str]
    """Modules that it imports."""
    read: frozenset[tuple[str, str]]
    """Attributes, as (global, attribute). The global starts the chain (``torch`` in ``torch.nn``) or is ""."""


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> _Names:
    loaded, imported, read, front = set(), set(), set(), ""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            front = instruction.argval
            loaded.add(front)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            read.add((front, instruction.argval))
        elif instruction.opname == "IMPORT_NAME":
            imported.add(instruction.argval)
            front = ""
        elif instruction.opname != "PRECALL":
            front = ""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names(constant)
            loaded |= inner.loaded
            imported |= inner.imported
            read |= inner.read
    return _Names(frozenset(loaded), frozenset(imported), frozenset(read))


# ---------------------------------------------------------------------- modules that torch does not see
def find_hidden_modules(parts: dict[str, Any]) -> list[nn.Module]:
    """Return modules in lists, bound methods, partials or objects of the parts, which ``parameters()`` misses."""
    registered = {id(m) for part in parts.values() if isinstance(part, nn.Module) for m in part.modules()}
    hidden: list[nn.Module] = []
    for name, part in parts.items():
        for reached in walk(part, name):
            if isinstance(reached.value, nn.Module) and not reached.in_function and id(reached.value) not in registered:
                hidden.append(reached.value)
                registered |= {id(m) for m in reached.value.modules()}
    return hidden


def refuse_state_in_functions(parts: dict[str, Any]) -> None:
    """Refuse functions that hold modules or trained tensors: a fit could neither copy nor freeze them.

    Raises
    ------
    TypeError
        Names the function, what it holds and where.
    """
    for name, part in parts.items():
        for path, value, in_function in walk(part, name):
            trained = isinstance(value, Tensor) and value.requires_grad
            if in_function and (isinstance(value, nn.Module) or trained):
                what = "uses the tensor that requires gradients" if trained else "calls the module"
                raise TypeError(
                    f"{name} {'is' if isinstance(part, types.FunctionType) else 'holds'} a function that {what} "
                    f"{path.removeprefix(f'{name}.')}, which fit could neither copy nor freeze. Pass the module "
                    "itself, a bound method or functools.partial of it, or an nn.Module that holds it and whose "
                    "forward calls it."
                )


# ---------------------------------------------------------------------- compiled code
def find_uncompiled(value: Any) -> Any:
    """Return the object that was passed to ``torch.compile``, or None if ``value`` is not compiled."""
    if isinstance(value, nn.Module):
        return vars(value)["_modules"].get("_orig_mod") if _is_optimized(value) else None
    return vars(value).get("_torchdynamo_orig_callable") if isinstance(value, types.FunctionType) else None


def _is_optimized(module: nn.Module) -> bool:
    # Compare names, because importing torch._dynamo takes a second.
    return any(
        cls.__name__ == "OptimizedModule" and cls.__module__.startswith("torch.") for cls in type(module).__mro__
    )


# ---------------------------------------------------------------------- what a callable computes with
def describe_code(parts: dict[str, Any]) -> list[Any]:
    """Return the code that parts run and the constants it reads, for a cache key. The same in every process.

    Importable functions are pickled by name, so their pickles do not change when their code does.
    """
    described: list[Any] = []
    for name, part in parts.items():
        for _, value, in_function in walk(part, name, constants=True):
            function = getattr(value, "__func__", value)
            if isinstance(function, types.FunctionType):
                described.append(_describe_function(function.__code__))
            elif in_function:
                described.append(_describe_constant(value))
    return described


def _describe_function(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_describe_function(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, tuple(constants), code.co_names, code.co_varnames, code.co_freevars


def _describe_constant(value: Any) -> Any:
    """Return what a value adds to a key. A container or an object adds its type; its contents are added separately."""
    if isinstance(value, Tensor):
        return value.detach().cpu().to_dense().numpy() if value.dtype != torch.bfloat16 else value.float().cpu().numpy()
    return value if isinstance(value, _LEAVES) or hasattr(value, "__array__") else type(value).__qualname__
