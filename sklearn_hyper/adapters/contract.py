"""What an adapter is: a frozen copy of a model of another library, called as f(t, z, **condition)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..modules.copies import frozen_copy
from ..modules.neural_ode import NeuralODE
from ..modules.serialization import DeviceFreeModule


class Adapter(DeviceFreeModule):
    """A model of another library as a vector field: the contract that every adapter keeps.

    An adapter

    - holds a frozen copy of the model, in eval mode: the user's own module keeps its mode, its weights and their
      gradients;
    - is called as ``f(t, z, **condition)``, where t is a 0-d tensor and z has shape (n, ...), and returns a tensor like
      z. In a data-controlled Neural ODE it gets the input x as its third argument;
    - names its conditions, and refuses a call with others, because many models run without a label as well.

    A subclass writes ``velocity``, and nothing else::

        class Backwards(Adapter):  # a model that takes (state, time a row) and runs from data to noise
            def velocity(self, t, z, *, label):
                return self.model(z, batch_times(t, z), label)


        ode = NeuralODE(Backwards(model, conditions=["label"]), t_span=(1.0, 0.0))

    Parameters
    ----------
    model : nn.Module or callable
        The model as it is: a module, a bound method, a partial or an object. It is copied with all that it holds.
    conditions : iterable of str, default ()
        Names of the conditions that every call has to pass.

    Raises
    ------
    TypeError
        If the model is not callable or cannot be copied, or a function holds a module, which a copy does not reach.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import NeuralODE
    >>> from sklearn_hyper.adapters import Adapter
    >>> class Swapped(Adapter):
    ...     def velocity(self, t, z):
    ...         return self.model(z)
    >>> model = torch.nn.Linear(2, 2)
    >>> NeuralODE(Swapped(model))(torch.zeros(3, 2)).requires_grad
    False
    >>> model.weight.requires_grad
    True
    """

    def __init__(self, model: Callable[..., Any], *, conditions: Iterable[str] = ()):
        super().__init__()
        if not callable(model) or isinstance(model, type):
            raise TypeError(f"model must be a module or a callable, got {model!r}.")
        self.model: Any = frozen_copy(NeuralODE(model)).vector_field
        self.conditions = tuple(conditions)
        self.eval()

    @abstractmethod
    def velocity(self, t: Tensor, z: Tensor, *inputs: Tensor, **condition: Any) -> Tensor:
        """Return dz/dt, by calling ``self.model``."""

    def forward(self, t: Tensor, z: Tensor, *inputs: Tensor, **condition: Any) -> Tensor:
        """Return dz/dt; refuse conditions that are missing or unknown."""
        if condition or self.conditions:
            self._check_names(condition)
        return self.velocity(t, z, *inputs, **condition)

    def _check_names(self, condition: Iterable[str]) -> None:
        given = set(condition)
        if given != set(self.conditions):
            raise ValueError(
                f"condition must have the entries {sorted(self.conditions)}, got {sorted(given)}: pass "
                f"condition={{name: one value a row}}, with the names that the adapter was made for."
            )

    def extra_repr(self) -> str:
        return f"conditions={list(self.conditions)}" if self.conditions else ""


def batch_times(t: Tensor, z: Tensor) -> Tensor:
    """Return the time of every row, of shape (n,) and in z's dtype: many models embed times row by row."""
    # z.shape[0] instead of len(z), which an export would treat as a constant: here and below.
    return t.to(z.dtype).expand(z.shape[0])


def tensor_of(output: Any) -> Tensor:
    """Return the tensor of a model's output: itself, its ``sample``, or the first entry of a tuple.

    Raises
    ------
    TypeError
        If there is none.
    """
    if isinstance(output, Tensor):
        return output
    found = output[0] if isinstance(output, (tuple, list)) and output else getattr(output, "sample", None)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the model returns a {type(output).__name__}; it must return a tensor, a tuple that begins with one, or "
            "an object whose attribute sample is one. Wrap it in a module that returns the tensor."
        )
    return found


def per_row(value: Tensor, z: Tensor) -> Tensor:
    """Return a number, or one a row of shape (n,), shaped to multiply states z."""
    return value.to(z.dtype).reshape(-1, *[1] * (z.ndim - 1)) if value.ndim else value.to(z.dtype)


def split_condition(condition: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names that calls have to pass, and the values that stay fixed.

    Parameters
    ----------
    condition : None, sequence of str, or mapping
        Names of what every call passes; or values by name, the same for all rows and calls.
    """
    if condition is None:
        return (), {}
    if isinstance(condition, dict):
        return (), dict(condition)
    if isinstance(condition, str):
        condition = (condition,)
    names = tuple(condition) if isinstance(condition, Iterable) else (condition,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"condition must be names, one or a list of them, or a dict of fixed values, got {condition!r}; pass the "
            "values themselves where the field is solved."
        )
    taken = sorted({"t", "z", "x"} & set(names))
    if taken:
        raise ValueError(
            f"condition names {taken}, which the field's own arguments have (t, z, x). Wrap the model in a module "
            "whose keyword has another name; values that stay fixed may keep theirs."
        )
    return names, {}


def fixed_for(value: Any, z: Tensor) -> Any:
    """Return a fixed value for the rows of z: a tensor with one row is repeated, other values stay as they are."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(z.device)
    return value.expand(z.shape[0], *value.shape[1:]) if value.ndim and len(value) == 1 else value
