"""The Neural ODE itself (paper, eq. 1)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..numerics.cost import count_macs
from ..numerics.protection import NO_INPUTS, FieldInputs
from ..numerics.reference import (
    DEFAULT_TOLERANCE,
    MAX_EVALUATIONS,
    reference_solution,
    solve_dopri5,
    solve_dopri5_at,
)
from ..numerics.times import check_t_span, time_tensor
from ..numerics.units import absolute_tolerance, feature_sizes
from .serialization import DeviceFreeModule
from .user_code import find_hidden_modules

PARTS = ("vector_field", "input_map", "output_map")

_MEASURED_ROWS = 512


class NeuralODE(DeviceFreeModule):
    r"""A Neural ODE, solved with dopri5.

    .. math::

        \dot z = f(s, x, z(s)), \qquad z(s_0) = h_x(x), \qquad \hat y = h_y(z(S))
        \qquad \text{(eq. 1)}

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(t, z)``, as in torchdiffeq, or ``f(t, z, x)`` with ``data_controlled=True``. Keyword arguments are passed as
        a ``condition``. z and the result have shape (batch, ...). t is a 0-d tensor on z's device and in z's dtype, or
        in float64 if z's dtype does not resolve ``t_span`` (Unix times in float32, for example). Parameters that vary
        with depth, theta(s), are covered: f may use t in any way. f may also be a bound method, a
        ``functools.partial`` or an object; modules that these hold are found and registered.
    input_map : nn.Module or callable, optional
        :math:`h_x`, from the input to the initial state. If missing: the identity.
    output_map : nn.Module or callable, optional
        :math:`h_y`, from the terminal state to the output. If missing: the identity.
    t_span : pair of float, default (0.0, 1.0)
        Start and end of the solve. The end may lie before the start.
    data_controlled : bool, default False
        Whether the field takes the raw input x as a third argument. It is never guessed from argument names.
    state_size : sequence of float, optional
        Size of the states, by feature or channel (axis 1). A missing absolute tolerance is a share of it. If missing:
        the RMS over the batch that is solved. Estimators measure it on the rows of their fit, so that a prediction does
        not depend on its batch.

    Raises
    ------
    TypeError
        If the field or a map is not callable.
    ValueError
        If ``t_span`` is not a pair of different finite numbers, or lies too far from zero for float64 to resolve it.

    References
    ----------
    Chen et al. (2018), *Neural Ordinary Differential Equations*; Massaroli et al. (2020), *Dissecting Neural ODEs*.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import NeuralODE
    >>> decay = NeuralODE(lambda t, z: -z)
    >>> round(decay(torch.ones(1, 1)).item(), 4)
    0.3679
    """

    state_size: tuple[float, ...] | None = None
    n_unitless = 0
    """How many numbers at the end of a state have no units (log densities)."""

    def __init__(
        self,
        vector_field: Callable[..., Tensor],
        *,
        input_map: Callable[[Tensor], Tensor] | None = None,
        output_map: Callable[[Tensor], Tensor] | None = None,
        t_span: tuple[float, float] = (0.0, 1.0),
        data_controlled: bool = False,
        state_size: Sequence[float] | None = None,
    ):
        super().__init__()
        for name, part in [("vector_field", vector_field), ("input_map", input_map), ("output_map", output_map)]:
            if part is not None and (not callable(part) or isinstance(part, type)):
                raise TypeError(f"{name} must be an nn.Module or a callable, got {part!r}.")
        if vector_field is None:
            raise TypeError("vector_field must be an nn.Module or a callable f(t, z), got None.")
        self.vector_field = vector_field
        self.input_map = nn.Identity() if input_map is None else input_map
        self.output_map = nn.Identity() if output_map is None else output_map
        self.t_span = check_t_span(t_span)
        self.data_controlled = bool(data_controlled)
        # Plain numbers instead of a buffer: they need not move with the module, and do not count for its dtype.
        self.state_size = None if state_size is None else tuple(float(size) for size in state_size)
        self.register_hidden()

    @property
    def parts(self) -> dict[str, Any]:
        """The field and the maps, by name."""
        return {name: getattr(self, name) for name in PARTS}

    def register_hidden(self) -> None:
        """Register modules that the parts hold in lists, bound methods, partials or objects.

        Registered as ``reached``, they move, freeze and change mode with the rest, and optimizers find their
        parameters.
        """
        hidden = find_hidden_modules(self.parts)
        if hidden:
            self.reached = nn.ModuleList(hidden)

    def with_span(self, t_span: tuple[float, float]) -> NeuralODE:
        """Return a Neural ODE with the same field and maps on another span of time. They are shared, not copied."""
        result = NeuralODE(
            self.vector_field, input_map=self.input_map, output_map=self.output_map, t_span=t_span,
            data_controlled=self.data_controlled, state_size=self.state_size,
        )  # fmt: skip
        result.n_unitless, result.training = self.n_unitless, self.training
        return result

    def inputs(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> FieldInputs:
        """Return the field's inputs besides t and z: the condition, and x if the field is data-controlled."""
        if not self.data_controlled and not condition:
            return NO_INPUTS
        return FieldInputs(x if self.data_controlled else None, condition or {})

    def forward(
        self,
        x: Tensor,
        rtol: float = DEFAULT_TOLERANCE,
        atol: float | None = None,
        adjoint: bool = False,
        condition: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Solve with torchdiffeq's dopri5 and map the terminal state to the output.

        Parameters
        ----------
        x : Tensor of shape (batch, ...)
        rtol : float, default 1e-6
        atol : float, optional
            In the units of the states. If missing: ``rtol`` times their size, ``state_size``.
        adjoint : bool, default False
            Compute gradients by the adjoint method instead of backpropagation through the solver.
        condition : mapping of str to Tensor, optional
            Keyword arguments of the field, with one entry per row.

        Returns
        -------
        Tensor of shape (batch, ...)
        """
        params = [p for p in self.parameters() if p.requires_grad] if adjoint else None
        return self.output_map(self.solve(x, rtol=rtol, atol=atol, adjoint_params=params, condition=condition))

    def solve(
        self,
        x: Tensor,
        *,
        rtol: float,
        atol: float | None = None,
        adjoint_params: Iterable[Tensor] | None = None,
        condition: Mapping[str, Any] | None = None,
        field: Callable[..., Tensor] | None = None,
        max_evaluations: int = MAX_EVALUATIONS,
        times: Tensor | None = None,
    ) -> Tensor:
        """Return the terminal state by torchdiffeq's plain dopri5, differentiable: for training and for timing.

        ``field`` replaces the vector field, for example by one that counts evaluations. ``adjoint_params`` are tensors
        whose gradients the adjoint method computes. With ``times``, of shape (batch, n_times) in float64 and padded
        with nan, it returns the states at times of their own for each row, zero where the time is nan. Other parameters
        are those of :meth:`forward`.
        """
        z0 = self.input_map(x)
        f = self.vector_field if field is None else field
        how: dict[str, Any] = {
            "rtol": rtol, "atol": self.tolerance(atol, rtol, z0), "inputs": self.inputs(x, condition),
            "adjoint_params": adjoint_params, "max_evaluations": max_evaluations,
        }  # fmt: skip
        if times is None:
            return solve_dopri5(f, z0, self.t_span, **how)
        return solve_dopri5_at(f, z0, self.t_span, times, **how)

    def reference(
        self,
        z0: Tensor,
        inputs: FieldInputs,
        times: Sequence[float],
        *,
        rtol: float,
        atol: float | Tensor,
        max_evaluations: int = MAX_EVALUATIONS,
    ) -> Tensor:
        """Return states at given times, accurate to the tolerance in each row: see ``reference_solution``."""
        return reference_solution(
            self.vector_field, z0, times, rtol=rtol, atol=atol,
            x=inputs.x, condition=inputs.condition, max_evaluations=max_evaluations,
        )  # fmt: skip

    def reference_at(
        self,
        z0: Tensor,
        inputs: FieldInputs,
        times: Tensor,
        *,
        rtol: float,
        atol: float | Tensor,
        max_evaluations: int = MAX_EVALUATIONS,
    ) -> Tensor:
        """Return states at times of their own for each row, without gradients: see ``solve_dopri5_at``."""
        with torch.no_grad():
            return solve_dopri5_at(
                self.vector_field, z0, self.t_span, times, rtol=rtol, atol=atol, inputs=inputs,
                max_evaluations=max_evaluations, by_row=True,
            )  # fmt: skip

    def outputs(self, states: Tensor, given: Tensor | None = None) -> Tensor:
        """Return the outputs of states; of states (batch, n_times, ...) those that are given, and nan for the others.

        The output map never sees the others, whose values mean nothing.
        """
        if given is None:
            return self.output_map(states)
        values: Tensor = self.output_map(states[given])
        return values.new_full((*given.shape, *values.shape[1:]), torch.nan).index_put((given,), values)

    def tolerance(self, atol: float | None, rtol: float, z0: Tensor) -> float | Tensor:
        """Return the absolute tolerance of a solve from z0: ``atol``, or a share of the states' size if it is None."""
        return absolute_tolerance(atol, rtol, z0, self.state_size, self.n_unitless)

    def measure_size(self, x: Tensor) -> None:
        """Set ``state_size`` from the initial states of these rows, or of about 512 of them."""
        with torch.no_grad():
            z = self.input_map(x[:: -(-len(x) // _MEASURED_ROWS)])
        self.state_size = tuple(feature_sizes(z, self.n_unitless).flatten().tolist())

    def count_field_macs(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> float:
        """Count the multiply-accumulates of one evaluation of f. nan if f has no matrix product or convolution."""
        with torch.no_grad():
            z = self.input_map(x)
        t = time_tensor(self.t_span[0], z, self.t_span)
        inputs = self.inputs(x, condition)
        return count_macs(self.vector_field, t, z, *inputs.arguments, **inputs.condition)

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype of the module's parameters and buffers, or None if it has none."""
        tensors = [*self.parameters(), *self.buffers()]
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)

    def extra_repr(self) -> str:
        parts = [f"t_span={self.t_span}"]
        if self.data_controlled:
            parts.append("data_controlled=True")
        if not isinstance(self.vector_field, nn.Module):
            # Where a function lies in memory says nothing, and would make two equal reprs differ.
            parts.append(f"vector_field={re.sub(' at 0x[0-9a-f]+', '', repr(self.vector_field))}")
        return ", ".join(parts)


class VectorFieldError(ValueError):
    """A vector field or map cannot be used in a Neural ODE."""


def check_neural_ode(neural_ode: NeuralODE, x: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
    """Run the input map and the field once on a few rows, refuse wrong outputs, and return the initial state.

    Raises
    ------
    ValueError
        If the weights have a dtype that no solver can compute in.
    VectorFieldError
        If a signature is wrong, or the field or the input map returns a wrong shape, dtype or device.
    """
    check_precision(neural_ode)
    with torch.no_grad():
        z = call_part(neural_ode, "input_map", x)
        if not isinstance(z, Tensor) or z.ndim < 1 or z.shape[0] != x.shape[0] or not z.is_floating_point():
            raise VectorFieldError(
                "input_map must return a floating-point tensor of shape (batch, ...), got "
                f"{_describe(z)} for an input of shape {tuple(x.shape)}."
            )
        t = time_tensor(neural_ode.t_span[0], z, neural_ode.t_span)
        dz = call_field(neural_ode, t, z, neural_ode.inputs(x, condition))
        if not _is_like(dz, z):
            structured = "; states that are tuples or dicts go through adapters.PytreeField"
            hint = structured if isinstance(dz, (tuple, list, Mapping)) else _time_hint(neural_ode, t, z)
            raise VectorFieldError(
                f"vector_field{_signature(neural_ode)} must return a tensor like z ({_describe(z)}), got "
                f"{_describe(dz)}{hint}."
            )
        _check_argument_order(neural_ode, t, z)
    return z


def check_precision(neural_ode: NeuralODE) -> None:
    """Refuse weights in half precision: its rounding is larger than dopri5's tolerances and than residuals."""
    for name, tensor in (*neural_ode.named_parameters(), *neural_ode.named_buffers()):
        if not is_lazy(tensor) and tensor.is_floating_point() and tensor.element_size() < 4:
            raise ValueError(
                f"neural_ode holds weights of dtype {tensor.dtype} ({name}); a solver needs float32 or float64, since "
                "the errors that it controls lie below the rounding of half precision. Pass neural_ode.float(), which "
                "computes the same field more precisely."
            )


def call_field(neural_ode: NeuralODE, t: Tensor, z: Tensor, inputs: FieldInputs) -> Any:
    """Call the field on copies of its arguments, as :func:`call_part` does."""
    return call_part(neural_ode, "vector_field", t, z, *inputs.arguments, **inputs.condition)


def call_part(neural_ode: NeuralODE, name: str, /, *arguments: Tensor, **condition: Any) -> Any:
    """Call the field or a map on copies of its arguments. An error says what was called, with what, and what failed.

    Raises
    ------
    VectorFieldError
    """
    part = getattr(neural_ode, name)
    try:
        keywords = {key: value.clone() if isinstance(value, Tensor) else value for key, value in condition.items()}
        return part(*(argument.clone() for argument in arguments), **keywords)
    except Exception as error:
        letters = ("t", "z", "x") if name == "vector_field" else ("x" if name == "input_map" else "z",)
        called = [f"{letter} ({_describe(a)})" for letter, a in zip(letters, arguments, strict=False)]
        called += [f"{key} ({_describe(value)})" for key, value in condition.items()]
        kind = "an input" if name == "input_map" else "a state"
        state = arguments[1 if name == "vector_field" else 0]
        text = " ".join(str(error).split()).rstrip(".") or "(no message)"
        advice = _advise_of_condition(error, condition) or _advise(neural_ode, name, arguments)
        raise VectorFieldError(
            f"{name}{_signature(neural_ode) if name == 'vector_field' else ''} fails on {kind} of shape "
            f"{tuple(state.shape)} (batch first) and dtype {state.dtype}: {type(error).__name__}: {text}. It was "
            f"called with {', '.join(called)}{advice}."
        ) from error


def _advise_of_condition(error: Exception, condition: Mapping[str, Any]) -> str:
    """Return advice where keyword arguments are missing or unknown."""
    if not isinstance(error, TypeError) or "keyword" not in str(error):
        return ""
    had = f"which had {', '.join(map(repr, condition))}" if condition else "which was left out"
    return f"; keyword arguments of a field are passed as condition={{name: one entry a row}}, {had}"


def _advise(neural_ode: NeuralODE, name: str, arguments: tuple[Tensor, ...]) -> str:
    """Return advice on what would have worked, if calling the field in another way does."""
    if name != "vector_field":
        return ""
    t, z = arguments[:2]
    if not torch.is_grad_enabled():
        with torch.enable_grad():
            if _works(neural_ode.vector_field, t, z, like=z):
                return (
                    "; with gradients switched on it works: a field that differentiates inside does so within "
                    "torch.enable_grad(), on z as it is where z.requires_grad, or by torch.func.grad"
                )
    if _works(neural_ode.vector_field, z, t, like=z):
        return "; called the other way round, with (z, t), it works: a field takes the time first, so wrap it"
    if t.dtype != z.dtype:
        return _time_hint(neural_ode, t, z)
    if _works(neural_ode.vector_field, z, like=z):
        return "; with z alone it works: a field takes the time first, also where it does not use it, so wrap it"
    if _solves_by_itself(neural_ode.vector_field, z):
        return (
            "; with z alone it returns a tensor of another shape: if it is a whole model that solves an ODE of its "
            "own, pass its field, as NeuralODE(model.field, input_map=..., output_map=...)"
        )
    if not neural_ode.data_controlled and _works(neural_ode.vector_field, t, z, z, like=z):
        return (
            "; with a third argument it works: a field that takes the input too needs NeuralODE(data_controlled=True)"
        )
    return ""


def _solves_by_itself(field: Any, z: Tensor) -> bool:
    try:
        return isinstance(field(z.clone()), Tensor)
    except Exception:  # a user's field may raise anything
        return False


def _time_hint(neural_ode: NeuralODE, t: Tensor, z: Tensor) -> str:
    if t.dtype == z.dtype:
        return ""
    return (
        f". Times of t_span={neural_ode.t_span} are not resolved by {z.dtype}, so the field gets t in {t.dtype}: cast "
        "what it makes of t to z's dtype, measure time from the start (t_span=(0, ...)), or use float64 for all"
    )


def _works(field: Any, *arguments: Tensor, like: Tensor) -> bool:
    try:
        return _is_like(field(*(argument.clone() for argument in arguments)), like)
    except Exception:  # a user's field may raise anything
        return False


_TIME_NAMES = {"t", "s", "ts", "time", "times", "tau", "sigma", "timestep", "timesteps"}


def _check_argument_order(neural_ode: NeuralODE, t: Tensor, z: Tensor) -> None:
    """Refuse a field f(z, t) that also works when called as f(t, z), because its arguments broadcast.

    It would give wrong values without an error. Values cannot show the mistake, so the argument names are checked.
    """
    field = neural_ode.vector_field
    function = field.forward if isinstance(field, nn.Module) else field
    try:
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in _POSITIONAL][:2]
    except (ValueError, TypeError):  # built-in and scripted functions have no signature
        return
    if len(names) == 2 and names[1] in _TIME_NAMES and names[0] not in _TIME_NAMES and _works(field, z, t, like=z):
        raise VectorFieldError(
            f"vector_field takes ({names[0]}, {names[1]}), a time second, and is called as vector_field(t, z): it does "
            "not fail, but broadcasts, and its numbers would be those of another field. Wrap it so that the time comes "
            "first."
        )


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _signature(neural_ode: NeuralODE) -> str:
    return "(t, z, x)" if neural_ode.data_controlled else "(t, z)"


def _is_like(value: Any, z: Tensor) -> bool:
    return isinstance(value, Tensor) and (value.shape, value.dtype, value.device) == (z.shape, z.dtype, z.device)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}, {value.dtype}, {value.device}"
    return f"{type(value).__name__}"
