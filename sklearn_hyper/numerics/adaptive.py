"""Adaptive stepping: each row of a batch chooses its own steps, by an estimate of their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from .adaptive_solve import MAX_ATTEMPTS, AdaptiveSolve
from .correction import Correction
from .dense_output import Node, check_shape, check_within, interpolate
from .methods.method import Method
from .protection import NO_INPUTS, FieldInputs
from .reference import check_tolerance
from .step_control import StepProposer
from .stepping import Stepping, check_state
from .times import check_n_steps, check_t_span

_TIMES = ("shared", "rows", "none")


class Adaptive(Stepping):
    r"""Choose each step by an estimate of its error: long steps where the dynamics are slow, short ones where not.

    A step of size :math:`\epsilon` is taken if its estimated error e passes, and repeated with a smaller one if not:

    .. math::

        E = \mathrm{rms}_i\, \frac{|e_i|}{\mathrm{atol}_i + \mathrm{rtol} \max(|z_i|, |z'_i|)} \le 1, \qquad
        \epsilon' = \epsilon \cdot 0.9\, E^{-0.7 / q}\, E_{\mathrm{last}}^{\,0.4 / q}

    The second formula, a PI controller, gives the size of the next step. q is the power of :math:`\epsilon` that the
    estimate goes with.

    The estimate is that of the base step. With a correction it is :math:`e = \epsilon^{p+1} g`, which costs no
    evaluation of f; the state goes on with the correction added. Without one, it is that of the method: of a tableau
    with ``embedded`` weights, or Milne's of "abm2". So the tolerance bounds the error of steps without correction, and
    the solution is usually more accurate than it says.

    f at the start of a step that is repeated is not evaluated again, nor is the last stage of a tableau whose last
    stage is the next step's first.

    Parameters
    ----------
    method : Method
        Takes the steps. With ``times`` other than "shared", or with a correction, it must be a one-step method.
    t_span : pair of float
    rtol : float
        Tolerance of a step, relative to the state.
    atol : float or Tensor, optional
        Absolute tolerance of a step, or one of each feature. By default ``rtol`` times the size of the initial states:
        their RMS by feature over the batch. Pass ``atol`` or ``sizes`` if a row's steps must not depend on the batch
        that it is in.
    sizes : sequence of float, optional
        Sizes of the states by feature, from which the default of ``atol`` is taken instead.
    times : {"shared", "rows", "none"}, default "shared"
        What f takes as its time. "shared": one time, so all rows share their steps, which are as short as the worst
        row needs. "rows": a vector with one time a row; each row has its own steps, and rows that have arrived leave
        the batch. "none": f does not depend on time, so each row has its own steps, and f always gets the start of the
        span.
    max_step : float, optional
        Longest step. By default the span. A correction is not to be trusted at steps longer than it was fitted for.
    n_outputs : int, default 10
        :meth:`trajectory` gives states at this many equal distances, by cubic Hermite interpolation between the steps.
        That takes one more evaluation of f, at the end.
    adds_correction : bool, default True
        Whether the correction is added to the state. If False it only estimates the error.
    max_attempts : int, default 10000
        Steps, taken or repeated, after which the solve is given up.
    proposer : object with a method propose, optional
        Takes the place of the PI controller: ``propose(s, z, slopes, rtol)`` returns a size for each row before its
        step is taken, from starts, states and f there. What ``rtol`` bounds is then for it to say; its states' sizes
        are ``sizes``, so ``atol`` cannot be given. A step fails only if it is not finite, or if its correction is
        larger than the state, or than ``limit`` tolerances, an attribute of the proposer. It needs a correction, and a
        method that evaluates f at the start of a step.

    Raises
    ------
    StepLimitError
        From a solve, if rows need more than ``max_attempts`` steps, or steps below 1e-12 of the span. It names them.

    References
    ----------
    Hairer, Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*, section II.4, and Hairer, Wanner
    (1996), *II*, section IV.2, for the controller. Poli et al. (2020), section 6, for adaptive hypersolvers.

    Examples
    --------
    A row that starts slowly takes longer steps than one that starts fast:

    >>> import torch
    >>> from sklearn_hyper.numerics import Adaptive, CountedField, resolve_base_solver
    >>> rk3 = resolve_base_solver("rk3")  # its embedded method is the midpoint method
    >>> f, stepping = CountedField(lambda t, z: -(z**3)), Adaptive(rk3, (0.0, 2.0), 1e-4, 1e-4, times="none")
    >>> z0 = torch.tensor([[0.1], [3.0]], dtype=torch.float64)
    >>> bool((stepping.solve(f, z0) - (z0**-2 + 4) ** -0.5).abs().max() < 1e-4)
    True
    >>> f.n_rows_evaluated < 2 * f.n_evaluations  # the first row arrives earlier
    True
    """

    def __init__(
        self,
        method: Method,
        t_span: Any,
        rtol: float,
        atol: float | Tensor | None = None,
        *,
        sizes: Sequence[float] | None = None,
        times: str = "shared",
        max_step: float | None = None,
        n_outputs: int = 10,
        adds_correction: bool = True,
        max_attempts: int = MAX_ATTEMPTS,
        proposer: StepProposer | None = None,
    ):
        if times not in _TIMES:
            raise ValueError(f"times must be one of {_TIMES}, got {times!r}.")
        if method.n_steps is not None:
            raise ValueError(
                f"method {method.name!r} is made for one mesh of {method.n_steps} steps, so no step of it can be "
                "chosen; take a Runge-Kutta method, such as 'rk4'."
            )
        if method.memory and times != "shared":
            raise ValueError(
                f"method {method.name!r} remembers earlier steps, which rows would have to share; pass "
                "times='shared', or take a Runge-Kutta method, such as 'rk4'."
            )
        self.method, self.t_span, self.times = method, check_t_span(t_span), times
        self.rtol = check_tolerance("rtol", rtol)
        self.atol = None if atol is None else check_tolerance("atol", atol)
        self.sizes = sizes
        span = abs(self.t_span[1] - self.t_span[0])
        self.max_step = span if max_step is None else min(check_tolerance("max_step", max_step), span)
        self.n_outputs = check_n_steps(n_outputs, "n_outputs")
        self.adds_correction = adds_correction
        self.max_attempts = check_n_steps(max_attempts, "max_attempts")
        self.proposer = proposer
        if proposer is not None:
            _check_proposed(method, atol)

    n_evaluations = None
    """They depend on the state: :meth:`SolvedODE.count_evaluations` counts them in a solve."""

    def solve(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        check_state(z0)
        _check(self, correction)
        return AdaptiveSolve(self, f, z0, correction, inputs).run()

    def trajectory(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        """Return the states at ``n_outputs`` + 1 equal times, time first; the first is z_0, the last that of solve."""
        start, stop = self.t_span
        shares = torch.linspace(0, 1, self.n_outputs + 1, dtype=torch.float64)
        times = start + (stop - start) * shares
        times[-1] = stop
        return self.states_at(f, z0, times, correction, inputs)

    def states_at(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        times: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        """Return the states at given times, time first, by cubic Hermite interpolation between a row's steps.

        The solve runs to the end of the span. Times between the ends take one more evaluation of f, at the end.

        Parameters
        ----------
        f, z0, correction, inputs
            As of :meth:`solve`.
        times : Tensor of shape (n_times,) or (batch, n_times)
            In float64, within the span and without nan.
        """
        check_state(z0)
        _check(self, correction)
        start, stop = self.t_span
        times = torch.as_tensor(times, dtype=torch.float64)
        check_shape(times, len(z0))
        check_within(times, start, stop)
        times = times.to(z0.device)
        at = times if times.ndim == 1 else times.T
        first, last = (_like_states(at == end, z0) for end in (start, stop))
        if bool((first | last).all()):
            end = z0 if bool(first.all()) else AdaptiveSolve(self, f, z0, correction, inputs).run()
            return torch.where(first, z0, end.expand(len(at), *end.shape))
        nodes: list[Node] = []
        solve = AdaptiveSolve(self, f, z0, correction, inputs, nodes)
        end = solve.run()
        states = interpolate([*nodes, solve.last_node(end)], times)
        return torch.where(first, z0, torch.where(last, end, states))

    def iterate(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Iterator[Tensor]:
        """Yield the states of :meth:`trajectory` after the first. The steps themselves differ between rows."""
        yield from self.trajectory(f, z0, correction, inputs)[1:]


def _like_states(values: Tensor, z: Tensor) -> Tensor:
    """Return values by time, or by time and row, so that they broadcast to states, time first."""
    return values.reshape(*values.shape, *[1] * (z.ndim + 1 - values.ndim))


def _check_proposed(method: Method, atol: float | Tensor | None) -> None:
    """Refuse what a proposer cannot work with."""
    if atol is not None:
        raise ValueError(
            f"atol={atol!r} with a proposer, which knows errors by rtol alone: leave atol out, and pass sizes= if need "
            "be."
        )
    if method.main_kind.nodes[0] != 0:
        raise ValueError(
            f"method {method.name!r} does not evaluate f at the start of a step, from which a proposer chooses its "
            "size; leave proposer out, or take a Runge-Kutta method, such as 'rk4'."
        )


def _check(policy: Adaptive, correction: Correction | None) -> None:
    """Refuse what cannot estimate an error, or cannot run in steps that are not known beforehand."""
    method = policy.method
    if is_compiling() or is_exporting():
        raise RuntimeError(
            "the steps of an adaptive solve depend on the data, so it cannot be traced by torch.compile, torch.export "
            "or ONNX. Export a solver with equal steps (stepping='fixed')."
        )
    if correction is None:
        if policy.proposer is not None:
            raise ValueError("a proposer chooses the steps of a corrected method: pass a correction, or no proposer.")
        if method.error_order is None:
            raise ValueError(
                f"method {method.name!r} does not estimate its error: pass a correction, which does, or a method that "
                "does ('heun', 'midpoint', 'ralston', 'rk3', 'abm2', or a ButcherTableau with embedded weights)."
            )
        return
    if method.memory:
        raise ValueError(
            f"method {method.name!r} remembers earlier steps, and a correction of it is made for equal ones; take a "
            "Runge-Kutta method, such as 'rk4'."
        )
    if type(correction).field is not Correction.field:
        raise ValueError(
            f"a {type(correction).__name__} changes the weights of f for steps that are known beforehand. An adaptive "
            "solve takes a net beside f: correction=MLPCorrection()."
        )
    if policy.times != "shared" and not correction.takes_row_steps:
        raise ValueError(
            f"a {type(correction).__name__} takes one step size for all rows; pass times='shared', or a correction "
            "with takes_row_steps."
        )
