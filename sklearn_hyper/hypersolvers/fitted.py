"""The result of a fit: a value that solves, measures itself, changes its solver, and becomes a module or a file."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..modules.corrections import ModuleCorrection
from ..modules.hypersolved_ode import FoldedODE, HypersolvedODE
from ..modules.learned_steps import LearnedSteps
from ..modules.neural_ode import NeuralODE
from ..modules.onnx_export import check_target, replace_file, require_onnx, write_onnx
from ..modules.serialization import DeviceFree, pack, unpack
from ..numerics.adaptive import Adaptive
from ..numerics.methods import Method, resolve_base_solver
from ..numerics.reference import check_tolerance
from ..numerics.row_errors import refuse_undefined
from ..numerics.stepping import FixedMesh, Stepping
from ..numerics.times import check_n_steps, check_t_span, uniform_grid
from ..reports import SolverReport
from ..training.nets import TrainingNet, move_net
from ..training.references import solve_references
from ..training.settings import FitSettings, SolveSettings
from ..training.tasks import Task
from .choose import check_same_family
from .report import Answers, measure_solvers

UNDEFINED = "the output map of dopri5's states at the end of t_span is not finite"
"""What an error says about the rows that it names."""


@dataclass(frozen=True, eq=False)
class FittedHypersolver(DeviceFree):
    """A fitted hypersolver, on tensors and without scikit-learn. Estimators delegate to it.

    It is a value: methods that change something return another one, which shares its weights.

    Parameters
    ----------
    neural_ode : NeuralODE
        The Neural ODE, frozen and in eval mode.
    method : Method
        The base method, with its coefficients learned.
    correction : ModuleCorrection or None
        The correction g. With None this is the base method alone.
    n_steps : int
        Number K of steps.
    settings : FitSettings
        Settings of the fit.
    fitted_eps : pair of float
        Smallest and largest step size that the correction was fitted at.
    errors, delta : dict
        Errors by fitted K: see ``errors_`` and ``delta_`` of :class:`~sklearn_hyper.HypersolverRegressor`.
    history : list of dict
        One row for each epoch.
    net : skorch net or None
        The net that trained g. None if it was read from a model file, which holds no optimizer.
    n_samples : int
        Number of rows that the fit has used.
    problems : tuple of str
        Messages that a user should be warned with.
    interrupted : bool
        Whether Ctrl-C ended the training early.
    base_method : Method, optional
        The method without a correction, where that is another than ``method``: coefficients as they were learned before
        they were trained on together with the correction.
    fitted_rows : array of int, optional
        Hashes of the rows that the fit has used: see :func:`~sklearn_hyper.training.tasks.row_digests`.
    times : {"shared", "rows", "none"}, default "shared"
        What the field gets as its time in adaptive solves: ``times`` of :class:`~sklearn_hyper.numerics.Adaptive`.
    steps : LearnedSteps, optional
        Chooses adaptive steps of the corrected method. By default the PI controller does.
    errors_before : dict, optional
        After a fit that went on from an earlier one: what ``errors`` were of the correction that it started from, on
        the same rows and for the field as it is now.

    Attributes
    ----------
    module : FoldedODE
        Input map, corrected steps and output map, which all methods run.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import NeuralODE
    >>> from sklearn_hyper.hypersolvers import FitSettings, Task, fit_hypersolver
    >>> decay = NeuralODE(lambda t, z: -z).eval()
    >>> x = torch.linspace(-1, 1, 50)[:, None]
    >>> fast = fit_hypersolver(Task(decay, x), FitSettings(n_steps=2, max_epochs=30, random_state=0))
    >>> bool((fast.solve(x) - fast.reference(x)).abs().max() < 1e-2)
    True
    >>> fast.with_solver(n_steps=3).method.count_evaluations(3)
    3
    """

    neural_ode: NeuralODE
    method: Method
    correction: ModuleCorrection | None
    n_steps: int
    settings: FitSettings
    fitted_eps: tuple[float, float]
    errors: dict[int, dict[str, float]] = field(repr=False)
    delta: dict[int, dict[str, float]] = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    net: TrainingNet | None = field(repr=False)
    n_samples: int
    problems: tuple[str, ...] = ()
    interrupted: bool = False
    base_method: Method | None = None
    fitted_rows: NDArray[np.uint64] | None = field(default=None, repr=False)
    times: str = "shared"
    steps: LearnedSteps | None = field(default=None, repr=False)
    errors_before: dict[int, dict[str, float]] | None = field(default=None, repr=False)
    module: FoldedODE = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", self._live().fold())

    def _live(self) -> HypersolvedODE:
        return HypersolvedODE(self.neural_ode, self.method, self.correction, self._stepping()).eval()

    def _stepping(self) -> Stepping:
        ode, settings = self.neural_ode, self.settings
        if not self.is_adaptive:
            return FixedMesh.of(self.method, ode.t_span, self.n_steps)
        return Adaptive(
            self.method, ode.t_span, settings.step_rtol, sizes=ode.state_size, times=self.times,
            max_step=self.fitted_eps[1], n_outputs=self.n_steps, proposer=self.steps,
        )  # fmt: skip

    @property
    def is_adaptive(self) -> bool:
        """Whether solves choose their steps: where that is asked for, and an error estimate is there."""
        has_estimate = self.correction is not None or self.method.error_order is not None
        return self.settings.is_adaptive and has_estimate

    @property
    def times_of_trajectory(self) -> tuple[float, ...]:
        """The times of the states that :meth:`trajectory` returns."""
        if self.is_adaptive:
            return uniform_grid(self.neural_ode.t_span, self.n_steps)
        return self.module.grid

    @property
    def solver_name(self) -> str:
        """The base method and its steps, as reports name them."""
        steps = f"rtol={self.settings.step_rtol:g}" if self.is_adaptive else f"K={self.n_steps}"
        return f"{self.method.name} {steps}"

    # ------------------------------------------------------------------ solve
    def solve(self, x: Tensor, condition: Mapping[str, Any] | None = None, z0: Tensor | None = None) -> Tensor:
        """Return the terminal state z_K of every row of x, a tensor of the Neural ODE's dtype and on its device.

        Where z0, what the input map makes of x, is known already, the map does not run.
        """
        with torch.no_grad():
            return self.module.terminal_state(x, condition, z0)

    def predict(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Return the output of the hypersolved Neural ODE, h_y(z_K)."""
        with torch.no_grad():
            return self.module(x, condition)

    def trajectory(self, x: Tensor, condition: Mapping[str, Any] | None = None, z0: Tensor | None = None) -> Tensor:
        """Return the states z_0, ..., z_K, of shape (K + 1, n, ...). ``z0`` is as in :meth:`solve`."""
        with torch.no_grad():
            return self.module.trajectory(x, condition, z0)

    def states_at(self, x: Tensor, times: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Return the states at given times, of shape (n_times, n, ...).

        Parameters
        ----------
        x : Tensor of shape (n, ...)
        times : Tensor of shape (n_times,) or (n, n_times)
            In float64, within the span and without nan: for all rows, or for each its own.
        condition : mapping of str to Tensor, optional

        Raises
        ------
        ValueError
            If a time lies between the ends of the span, where this solver's states approximate none of the Neural
            ODE's: that of learned coefficients.
        """
        self.check_times(times)
        with torch.no_grad():
            return self.module.states_at(x, times, condition)

    def check_times(self, times: Any) -> None:
        """Refuse times at which the states of this solver approximate none of the Neural ODE's; nan counts as none.

        Raises
        ------
        ValueError
        """
        if self.method.follows_trajectory:
            return
        at = torch.as_tensor(times, dtype=torch.float64).cpu().numpy()
        between = at[~(np.isnan(at) | np.isin(at, self.neural_ode.t_span))]
        if len(between):
            raise ValueError(
                f"t_eval holds {between[0]:g}, between the ends of t_span={self.neural_ode.t_span}, and this solver "
                f"approximates the Neural ODE's state at the end alone: base_solver={self.method.name!r}, which 'auto' "
                "may stand for, has coefficients learned for that. Fit with finetune='trajectory', for which 'auto' is "
                "a base solver that follows the trajectory, or name one, such as base_solver='ab2'."
            )

    def reference(
        self,
        x: Tensor,
        condition: Mapping[str, Any] | None = None,
        *,
        solving: SolveSettings | None = None,
        keep_lost: bool = False,
    ) -> Tensor:
        """Solve by dopri5; return the terminal states, on the CPU.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
        condition : mapping of str to Tensor, optional
        solving : SolveSettings, optional
            Tolerances, cache and jobs. By default those of the fit.
        keep_lost : bool, default False
            Return nan for rows that dopri5 cannot solve, instead of raising. If it can solve none, it still raises.

        Raises
        ------
        ReferenceSolveError
            If dopri5 cannot solve some rows; the error names them.
        """
        task = Task(self.neural_ode, x, condition or {})
        solving = replace(solving or self.settings, device=str(self.device))
        return solve_references(task, self.neural_ode.t_span, solving, keep_lost=keep_lost)[-1]

    def report(
        self,
        x: Tensor,
        reference: Tensor | None = None,
        condition: Mapping[str, Any] | None = None,
        *,
        tolerance: float = 1e-4,
        mape_floor: float = 1e-2,
        batch_size: int = 256,
        labels: np.ndarray | None = None,
        to_labels: Callable[[np.ndarray], np.ndarray] | None = None,
        answers: Mapping[str, Answers] | None = None,
    ) -> SolverReport:
        """Compare accuracy and cost with the base method and dopri5; see :meth:`HypersolverRegressor.solver_report`.

        For a classifier, ``labels`` are indices of labels, and ``to_labels`` computes such indices from outputs.
        ``answers`` are further ways to solve rows, by name, each of which returns states and evaluations by row.
        """
        task = Task(self.neural_ode, x, condition or {})
        if reference is None:
            on_cpu = task.to("cpu")
            reference = self.reference(on_cpu.x, on_cpu.condition)
        reference = reference.to(x.device)
        refuse_undefined(torch.from_numpy(self.map_output(reference)), UNDEFINED)
        base = self.without_correction()
        solvers = {base.solver_name: base.module}
        if self.correction is not None:
            solvers[f"hyper-{self.solver_name}"] = self.module
        return measure_solvers(
            solvers, task, reference, labels, answers=answers or {}, to_labels=to_labels,
            tolerance=tolerance, floor=mape_floor, batch_size=batch_size,
        )  # fmt: skip

    def map_output(self, states: Tensor) -> np.ndarray:
        """Return the outputs h_y of terminal states, computed in batches."""
        with torch.no_grad():
            parts = states.split(self.settings.batch_size)
            return np.concatenate([self.neural_ode.output_map(z.to(self.device)).cpu().numpy() for z in parts])

    # ------------------------------------------------------------------ others like it
    def with_solver(
        self,
        base_solver: Any = None,
        n_steps: int | None = None,
        t_span: tuple[float, float] | None = None,
        *,
        step_rtol: float | None = None,
        stacklevel: int = 2,
    ) -> FittedHypersolver:
        """Return a copy with another method, number of steps, span or tolerance, and the same correction (Fig. 6).

        ``stacklevel`` is that of the warnings, as Python counts it from here.

        Raises
        ------
        ValueError
            If the order or number of stages differs; the error names both. If learned coefficients are asked for
            another number of steps.

        Warns
        -----
        UserWarning
            If the correction was not fitted at the step size, or not over the method.
        """
        method = self.method if base_solver is None else resolve_base_solver(base_solver)
        n_steps = check_n_steps(self.n_steps if n_steps is None else n_steps)
        neural_ode = self.neural_ode
        if t_span is not None:
            neural_ode = neural_ode.with_span(check_t_span(t_span))
        grid = method.mesh(neural_ode.t_span, n_steps)
        if self.correction is not None:
            check_same_family(method, self.method, f"fit another hypersolver with {method.name!r}")
            eps = abs(grid[1] - grid[0])
            self._warn_outside_fit(method, None if self.is_adaptive else eps, stacklevel + 1)
        # A refit goes on with the method and number of steps that the copy has.
        settings = replace(self.settings, base_solver=method, order=None, n_steps=n_steps)
        if step_rtol is not None:
            self._check_has_tolerance(step_rtol)
            settings = replace(settings, step_rtol=check_tolerance("step_rtol", step_rtol))
        base = self.base_method if base_solver is None else None
        # Errors of another method are not known.
        steps = self.steps if method == self.method else None
        return replace(
            self, neural_ode=neural_ode, method=method, base_method=base, n_steps=n_steps, settings=settings,
            steps=steps,
        )  # fmt: skip

    def _check_has_tolerance(self, step_rtol: Any) -> None:
        if not self.settings.is_adaptive:
            raise ValueError(
                f"step_rtol={step_rtol!r} is the tolerance of adaptive steps, and this hypersolver takes "
                f"{self.n_steps} fixed ones; fit with stepping='adaptive', or pass n_steps."
            )

    def _warn_outside_fit(self, method: Method, eps: float | None, stacklevel: int) -> None:
        if eps is not None and not self._is_fitted_at(eps):
            low, high = self.fitted_eps
            warnings.warn(
                f"step size {eps:.3g} lies outside the fitted range [{low:.3g}, {high:.3g}]; check score(X), or fit "
                "with fit_n_steps=(a, b) to cover it.",
                UserWarning,
                stacklevel=stacklevel,
            )
        if self.correction is not None and not self.correction.covers(method):
            warnings.warn(
                f"base_solver {method.name!r} lies outside the family that the correction was fitted over; check "
                "score(X), or fit with it among the correction's tableaus.",
                UserWarning,
                stacklevel=stacklevel,
            )

    def _is_fitted_at(self, eps: float) -> bool:
        low, high = self.fitted_eps
        # At times far from zero, a step is the difference of two large numbers, whose rounding counts.
        slack = 1e-6 + 4 * np.finfo(float).eps * max(map(abs, self.neural_ode.t_span)) / eps
        return bool(low * (1 - slack) <= eps <= high * (1 + slack))

    def without_correction(self) -> FittedHypersolver:
        """Return a copy without the correction: the base method alone.

        A method that then estimates no error takes ``n_steps`` equal steps, also where steps were adaptive.
        """
        return replace(self, correction=None, method=self.base_method or self.method, steps=None)

    # ------------------------------------------------------------------ leaving
    def to_module(self) -> HypersolvedODE:
        """Return a module that predicts and can be trained further; see :meth:`HypersolverRegressor.to_module`."""
        return copy.deepcopy(self._live())

    def export_onnx(
        self,
        path: str | os.PathLike[str],
        x: Tensor,
        condition: Mapping[str, Any] | None = None,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        outputs: Sequence[str] = ("output",),
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write an ONNX file, once ONNX Runtime and torch agree on the rows of x.

        Parameters
        ----------
        path : str or path
            The file to write.
        x : Tensor of shape (n, ...)
            Rows to compare on.
        condition : mapping of str to Tensor, optional
            Keyword arguments of the field for these rows. The file takes them as inputs ``condition_NAME``.
        wrap : callable, optional
            ``wrap(module)`` returns the module to export, for other outputs than the folded module's own.
        outputs : sequence of str
            Names of the outputs.
        metadata : mapping of str to str, optional
            Metadata to store in the file.

        Raises
        ------
        ImportError, ValueError, RuntimeError
            As :meth:`HypersolverRegressor.export_onnx`.
        """
        if self.is_adaptive:
            raise ValueError(
                "stepping='adaptive' cannot be exported: a file has a fixed number of steps, and these depend on the "
                "data. Fit with stepping='fixed'."
            )
        target = check_target(path)
        require_onnx()
        module: nn.Module = copy.deepcopy(self.module)
        module = module if wrap is None else wrap(module)
        beside = {name: value.cpu() for name, value in (condition or {}).items()}
        write_onnx(module.cpu().eval(), x.cpu(), target, condition=beside, outputs=outputs, metadata=metadata)
        return target

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file that :meth:`load` reads on any device; replace an older file only when it is complete."""
        target = check_target(path)
        replace_file(target, pack(self))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FittedHypersolver:
        """Read a file of :meth:`save` onto the CPU. It is unpickled, so load only files that you trust."""
        loaded = unpack(Path(path).read_bytes())
        if not isinstance(loaded, cls):
            raise ValueError(f"path={str(path)!r} holds a {type(loaded).__name__}, not a {cls.__name__}.")
        return loaded

    def to(self, device: torch.device | str) -> FittedHypersolver:
        """Return a copy on another device, that of the net included. It shares nothing with this one."""
        return move_all([self], device)[0]

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU if it has none."""
        modules = [module for module in (self.neural_ode, self.correction) if module is not None]
        tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))


def move_all(solvers: Sequence[FittedHypersolver], device: torch.device | str) -> list[FittedHypersolver]:
    """Return copies on another device. What solvers share, as their Neural ODE, their copies share too."""
    copies: list[FittedHypersolver] = copy.deepcopy(list(solvers))
    for moved in copies:
        for module in (moved.neural_ode, moved.correction, moved.steps, moved.module):
            if module is not None:
                module.to(device)
    for net in {id(moved.net): moved.net for moved in copies}.values():
        if net is not None:
            move_net(net, torch.device(device))
    return [replace(moved, settings=replace(moved.settings, device=str(device))) for moved in copies]
