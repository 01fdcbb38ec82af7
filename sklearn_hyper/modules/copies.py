"""Copies of the user's field and maps: frozen for a fit that only reads them, or live for training."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from .neural_ode import PARTS, NeuralODE
from .serialization import copy_user_code, pack
from .user_code import find_hidden_modules, refuse_state_in_functions, walk


def frozen_copy(neural_ode: NeuralODE) -> NeuralODE:
    """Return a frozen copy in eval mode. A fit works on it and leaves the user's module as it is.

    Raises
    ------
    TypeError
        If a function holds a module, which a copy cannot reach, or something cannot be copied.
    """
    refuse_state_in_functions(neural_ode.parts)
    return freeze(copy_user_code(neural_ode, "neural_ode"))


def freeze(neural_ode: NeuralODE) -> NeuralODE:
    """Freeze all that the Neural ODE reaches, and set it to eval mode. Repeat this if its parts gain modules later."""
    neural_ode.register_hidden()
    neural_ode.eval().requires_grad_(False)
    for _, tensor in _trained_tensors(neural_ode):
        if tensor.is_leaf:  # a plain attribute that is not a registered parameter; other tensors are kept activations
            tensor.requires_grad_(False)
    return neural_ode


def trained_copies(*parts: Any) -> tuple[Any, ...]:
    """Return copies of a field and maps, to be trained. Modules that they share stay shared, and None stays None.

    Raises
    ------
    TypeError
        If a function holds a module, which a copy cannot reach, or something cannot be copied. Also if a tensor that
        requires gradients is not a parameter of a module, because it would not be trained.
    """
    given = {name: part for name, part in zip(PARTS, parts, strict=False) if part is not None}
    refuse_state_in_functions(given)
    copied = copy_user_code(parts, "the vector field or a map")
    named = {name: part for name, part in zip(PARTS, copied, strict=False) if part is not None}
    modules = [part for part in copied if isinstance(part, nn.Module)] + find_hidden_modules(named)
    known = {id(parameter) for module in modules for parameter in module.parameters()}
    for path, tensor in _trained_tensors(list(copied)):
        if id(tensor) not in known:
            raise TypeError(
                f"the vector field or a map holds a tensor that requires gradients and is no parameter ({path}): it "
                "would never be trained. Make it an nn.Parameter of a module."
            )
    return copied


class PersistenceWarning(UserWarning):
    """The result of a fit cannot be saved."""


def check_saveable(neural_ode: NeuralODE, *, needed_for: str | None = None, stacklevel: int = 7) -> None:
    """Warn before a fit, not after it, if its result cannot be pickled.

    Parameters
    ----------
    neural_ode : NeuralODE
    needed_for : str, optional
        Name of a parameter for which the fit itself has to pickle ``neural_ode``. Then failing to is an error.
    stacklevel : int, default 7
        Of the warning: how many calls up the user's own is.

    Raises
    ------
    ValueError
        If it cannot be pickled and ``needed_for`` is given.

    Warns
    -----
    PersistenceWarning
        If it cannot be pickled and ``needed_for`` is missing.
    """
    try:
        pack(neural_ode)
    except Exception as error:
        what = (
            f"the field or a map cannot be pickled ({type(error).__name__}: {error}). Open files, locks, generators "
            "and modules of torch.export are what usually cannot: pass the Python module, or define __getstate__ on "
            "the class that holds them"
        )
        if needed_for is not None:
            raise ValueError(f"{needed_for} needs to pickle neural_ode, and {what}.") from error
        warnings.warn(
            f"{what}. The fit goes on, but its result can be neither saved nor sent to another process.",
            PersistenceWarning,
            stacklevel=stacklevel,
        )


def _trained_tensors(root: Any) -> list[tuple[str, Tensor]]:
    return [(r.path, r.value) for r in walk(root, "") if isinstance(r.value, Tensor) and r.value.requires_grad]
