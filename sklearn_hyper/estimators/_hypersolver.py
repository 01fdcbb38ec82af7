"""All of a hypersolver but what predict and score mean."""

from __future__ import annotations

import copy
import inspect
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor, nn

from ..metrics import SolverReport, mean_absolute_percentage_error
from ..modules.hypersolved_ode import HypersolvedODE
from ..modules.neural_ode import NeuralODE, check_neural_ode
from ..modules.solver_binding import solver_family
from ..numerics.base_solvers import DEFAULT, NONSTATIONARY, BaseSolver, resolve_base_solver, startup_methods
from ..numerics.residuals import compute_residuals
from ..numerics.solve import check_n_steps, check_t_span, solver_mesh
from ..training.coefficient_fitting import classical_starts, fit_coefficients
from ..training.correction_fitting import FitSettings, FittedCorrection, build_correction, fit_correction, max_rows
from ..training.nets import seeded
from ..training.references import solve_references
from ..training.residual_sets import StepSizes
from ._base import check_device, check_output_map, module_dtype
from ._fitted_neural_ode import FittedNeuralODE, resolve_neural_ode
from ._hypersolver_base import HypersolverBase
from ._onnx_export import OnnxExportMixin
from ._reports import measure_solvers

_MAX_SAMPLES = 2000
_FEW_DIMENSIONS = 4
"""Up to here a correction with a tenth of f's MACs knows the state well; beyond, learned coefficients are worth more."""
_CONTRACT = "The contract of a correction is forward(eps, s, z, stages, x=None) -> tensor like z."


class Hypersolver(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OnnxExportMixin, HypersolverBase):
    """Fit, inference, reports and solver swaps, shared by the regressor and the classifier."""

    # ------------------------------------------------------------------ fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Hypersolver:
        """Fit the correction on dopri5 trajectories that start from X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs as the Neural ODE takes them. No labels are needed.
        y : ignored
            For scikit-learn's conventions.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If ``neural_ode`` is not fitted.
        VectorFieldError
            If the field's signature, or the shape, dtype or device of its output, is wrong.
        ReferenceSolveError
            If dopri5 cannot solve the Neural ODE from X.
        TrainingDivergedError
            If the training loss is no longer finite.

        Warns
        -----
        ConvergenceWarning
            If no epoch was better than the base solver, which the fit then falls back to.
        """
        with self._all_or_nothing():
            interrupted = self._fit(X)
        if interrupted:
            raise KeyboardInterrupt
        return self

    def _fit(self, X: Any) -> bool:
        check_n_steps(self.n_steps)
        self._resolve_solver(0)  # a wrong name is an error before anything is solved
        fit_range = self._fit_range()
        device = check_device(self.device)
        resolved = resolve_neural_ode(self.neural_ode)
        warm = getattr(self, "correction_", None) if self.warm_start else None
        self.preprocess_ = copy.deepcopy(resolved.preprocess)
        X = self._prepare_X(X, reset=warm is None)
        if resolved.input_shape not in (None, X.shape[1:]):
            raise ValueError(
                f"X has samples of shape {X.shape[1:]} (n_features={X.shape[1]}), but neural_ode was fitted on samples of "
                f"shape {resolved.input_shape}; pass X as neural_ode takes it."
            )
        frozen = _frozen_copy(resolved.module).to(device)
        self.dtype_, self.device_ = module_dtype(frozen.dtype, X), str(device)
        two_rows = self._to_tensor(X[:2], self.dtype_, device)
        z = check_neural_ode(frozen, two_rows)
        self._check_output(frozen, z, resolved)
        solver = self._resolve_solver(z[0].numel())
        if warm is not None:
            solver = self._resume_solver(solver, frozen.t_span)
        self._check_correction(frozen, z, frozen.control(two_rows), solver)
        X = self._subsample(X, z, solver.n_stages, StepSizes.from_parameters(int(self.n_steps), fit_range).steps)
        self._check_n_samples(len(X))
        settings = self._settings(fit_range)
        rows = self._to_tensor(X, self.dtype_, "cpu")
        if self._solver_name(z[0].numel()) == NONSTATIONARY:
            # A correction that goes on belongs to the coefficients it was fitted on.
            solver = fit_coefficients(frozen, rows, settings) if warm is None else self.base_solver_
        fitted = fit_correction(frozen, rows, solver, settings, warm)
        self.neural_ode_ = frozen
        self.correction_ = None if self._falls_back(fitted, warm) else fitted.correction
        self.net_, self.history_, self.delta_ = fitted.net, fitted.history, fitted.delta
        self.errors_ = fitted.errors
        span = abs(frozen.t_span[1] - frozen.t_span[0])
        self._fitted_eps = (fitted.fitted_range[0] * span, fitted.fitted_range[1] * span)
        self._n_features_out = z[0].numel()
        self._set_module(frozen, solver, solver_mesh(solver, frozen.t_span, self.n_steps))
        return fitted.interrupted

    def _solver_name(self, n_state: int) -> Any:
        """``base_solver``, or what "auto" stands for with states of so many numbers."""
        if self.base_solver != "auto" or self.order is not None:
            return self.base_solver
        if 1 in (self.n_steps, self.fit_n_steps):
            return "euler"
        # Learned coefficients serve one number of steps, and the terminal state alone.
        wants_terminal_state = self.fit_n_steps in (None, self.n_steps) and self.finetune in ("terminal", "output")
        return NONSTATIONARY if n_state > _FEW_DIMENSIONS and wants_terminal_state else DEFAULT

    def _resolve_solver(self, n_state: int) -> BaseSolver:
        """The base solver; of a nonstationary one, whose coefficients are still to be learned, Euler's form."""
        name = self._solver_name(n_state)
        if name != NONSTATIONARY:
            solver = resolve_base_solver(name, self.order)
            self._check_startup(solver)
            return solver
        if self.fit_n_steps not in (None, self.n_steps):
            raise ValueError(
                f"fit_n_steps={self.fit_n_steps!r} with base_solver={NONSTATIONARY!r}, whose coefficients are made for "
                f"n_steps={self.n_steps} alone; leave fit_n_steps=None."
            )
        return resolve_base_solver(classical_starts(self.n_steps)[0], self.order)

    def _resume_solver(self, solver: BaseSolver, t_span: tuple[float, float]) -> BaseSolver:
        """The base solver that a warm start goes on with: one of the fitted kind; "auto" stays what it stood for."""
        if self.base_solver == "auto" and self.order is None:
            solver = self.base_solver_
            self._check_startup(solver)
            solver_mesh(solver, t_span, self.n_steps)  # learned coefficients refuse another number of steps
        self._check_same_family(solver)
        return solver

    def _settings(self, fit_range: Any) -> FitSettings:
        names = (
            "correction", "loss", "finetune", "rtol", "atol", "max_epochs", "lr", "batch_size", "optimizer", "callbacks",
            "validation_fraction", "memory", "n_jobs", "random_state", "verbose",
        )  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        return FitSettings(n_steps=int(self.n_steps), fit_n_steps=fit_range, device=self.device_, **own)

    def _check_n_samples(self, n_samples: int) -> None:
        n_valid = max(1, round(self.validation_fraction * n_samples))
        if n_samples - n_valid < 1:
            raise ValueError(
                f"n_samples={n_samples} is too few for validation_fraction={self.validation_fraction}: {n_valid} held out, "
                f"{n_samples - n_valid} left to fit. At least 2 samples are needed (got n_samples={n_samples})."
            )

    def _falls_back(self, fitted: FittedCorrection, warm: Any) -> bool:
        """Whether the base solver alone is what this fit has to offer; then it says so."""
        best = min((row["valid_loss"] for row in fitted.history if "valid_loss" in row), default=0.0)
        if fitted.helps and (best < 1 or warm is not None):
            return False
        warnings.warn(
            "no epoch was better than the base solver on held-out rows without exceeding its largest error there (best "
            f"valid_loss {best:.3g}; 1 is the base solver), so this fit falls back to it: correction_ is None. Lower lr, "
            "raise max_epochs, or give more rows.",
            ConvergenceWarning,
            stacklevel=6,
        )
        return True

    def _check_startup(self, solver: BaseSolver) -> None:
        n_startup = len(startup_methods(solver))
        for name in ("n_steps", "fit_n_steps"):
            value = getattr(self, name)
            if n_startup and isinstance(value, Integral) and value <= n_startup:
                raise ValueError(
                    f"{name}={value} with base_solver={solver.name!r} makes start-up steps only; {name} must be at least "
                    f"{n_startup + 1}, or use {startup_methods(solver)[0].name!r}."
                )

    def _set_module(self, neural_ode: NeuralODE, solver: BaseSolver, grid: tuple[float, ...]) -> None:
        self.base_solver_, self.order_ = solver, solver.order
        self.module_ = HypersolvedODE(neural_ode, solver, self.correction_, grid).eval()

    def _check_output(self, neural_ode: NeuralODE, z: Tensor, resolved: FittedNeuralODE) -> None:
        check_output_map(neural_ode, z)
        self._squeeze_output = resolved.squeeze

    def _check_correction(self, neural_ode: NeuralODE, z: Tensor, x: Tensor | None, solver: BaseSolver) -> None:
        """Build g and call it once on two rows, so that a wrong one shows before any solve."""
        eps, n_past = (neural_ode.t_span[1] - neural_ode.t_span[0]) / self.n_steps, len(startup_methods(solver))
        grid = [neural_ode.t_span[0] + k * eps for k in range(n_past + 2)]
        with torch.no_grad(), seeded(0, z.device):
            samples = compute_residuals(neural_ode.vector_field, torch.stack([z] * len(grid)), grid, solver, x=x)
            sample = samples[-1]
            blocks = [(sample, member) for member in solver_family(self.correction, solver)]
            net = build_correction(self.correction, neural_ode, solver, blocks, x).net
            try:
                g = net(sample.eps, z.new_tensor(sample.s), z, sample.stages, x)
            except Exception as error:
                raise ValueError(f"correction={self.correction!r} fails: {error}. {_CONTRACT}") from error
        if not isinstance(g, Tensor) or (g.shape, g.dtype, g.device) != (z.shape, z.dtype, z.device):
            got = f"shape {tuple(g.shape)}, {g.dtype}" if isinstance(g, Tensor) else type(g).__name__
            raise ValueError(
                f"correction={self.correction!r} returns {got} for a state of shape {tuple(z.shape)}, {z.dtype}. {_CONTRACT}"
            )

    def _subsample(self, X: np.ndarray, z: Tensor, n_stages: int, steps: tuple[int, ...]) -> np.ndarray:
        limit = self.max_samples
        if limit == "auto":
            limit = min(_MAX_SAMPLES, max_rows(z[0].numel(), n_stages, z.element_size(), steps))
        if len(X) <= limit:
            return X
        seed = None if self.random_state is None else check_random_state(self.random_state).randint(2**31 - 1)
        return X[np.sort(np.random.default_rng(seed).choice(len(X), limit, replace=False))]

    # ------------------------------------------------------------------ inference
    def _apply(self, method: str, X: Any) -> np.ndarray:
        module = self._require_fitted("module_")
        return self._in_batches(getattr(module, method), self._prepare_X(X, reset=False))

    def transform(self, X: Any) -> np.ndarray:
        """Terminal state z_K of every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ...), with the shape of the state
        """
        z = self._apply("terminal_state", X)
        if z.ndim > 2 and _wants_frame(self):
            raise ValueError(
                f"set_output(transform={_wants_frame(self)!r}) needs vector states, and this Neural ODE's have shape "
                f"{z.shape[1:]}; use set_output(transform='default') and reshape the array."
            )
        return z

    def trajectory(self, X: Any, output: bool = False) -> np.ndarray:
        """States at every step of the solve.

        A "nonstationary" base solver, which "auto" may stand for, makes only the last of them a state of the Neural ODE;
        fit with ``finetune="trajectory"`` or another base solver where those between matter.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        output : bool, default False
            Map each state through the output map: what predict gives, or a classifier's logits.

        Returns
        -------
        ndarray of shape (n_samples, K + 1, ...)
        """
        module = self._require_fitted("module_")
        output_map = module.neural_ode.output_map

        def states(x: Tensor) -> Tensor:
            z = module.trajectory(x)
            return torch.stack([output_map(step) if output else step for step in z], dim=1)

        result = self._in_batches(states, self._prepare_X(X, reset=False))
        return result[..., 0] if output and self._squeeze_output else result

    def reference(self, X: Any) -> np.ndarray:
        """What dopri5 at ``rtol`` and ``atol`` gives in place of the hypersolver: the output h_y(z(S)).

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ...)
            Logits, where the Neural ODE is a classifier's.
        """
        module = self._require_fitted("module_")
        output = self._reference_output(module.neural_ode, self._prepare_X(X, reset=False))
        return output[:, 0] if self._squeeze_output else output

    def _reference_states(self, neural_ode: NeuralODE, X: np.ndarray) -> Tensor:
        rows = self._to_tensor(X, self.dtype_, "cpu")
        return solve_references(
            neural_ode, rows, neural_ode.t_span, rtol=self.rtol, atol=self.atol, memory=self.memory,
            n_jobs=self.n_jobs, device=self.device_, verbose=self.verbose,
        )[-1]  # fmt: skip

    def _reference_output(self, neural_ode: NeuralODE, X: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            states = self._reference_states(neural_ode, X).split(self.batch_size)
            return np.concatenate([neural_ode.output_map(z.to(self.device_)).cpu().numpy() for z in states])

    def _neg_mape(self, X: Any, sample_weight: Any = None) -> float:
        module = self._require_fitted("module_")
        X = self._prepare_X(X, reset=False)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        reference = self._reference_output(module.neural_ode, X)
        return -mean_absolute_percentage_error(
            reference, self._in_batches(module, X), floor=self.mape_floor, sample_weight=sample_weight
        )  # fmt: skip

    def solver_report(self, X: Any, y: Any = None, *, tolerance: float = 1e-4, batch_size: int = 256) -> SolverReport:
        """Accuracy and cost of this hypersolver beside its base solver and dopri5.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Errors are measured on all of it, milliseconds on one batch of it.
        y : array-like of shape (n_samples,), optional
            Labels: adds the accuracy of a classifier. A regressor ignores it.
        tolerance : float, default 1e-4
            rtol and atol of the dopri5 that is timed and listed; errors are against ``reference(X)``.
        batch_size : int, default 256
            Rows of the batch that is timed.

        Returns
        -------
        SolverReport
            Rows by solver: MAPE of the outputs, relative L2 of the terminal states (mean, median, p99, max), NFE, MACs
            a sample, milliseconds a batch, speed-up over dopri5, relative overhead O_r of g (section 6).
        """
        module = self._require_fitted("module_")
        X = self._prepare_X(X, reset=False)
        rows = self._to_tensor(X, self.dtype_, self.device_)
        states = self._reference_states(module.neural_ode, X).to(self.device_)
        labels = None if y is None else self._label_indices(y, len(X))
        name = f"{module.base_solver.name} K={module.n_steps}"
        solvers = {name: self.without_correction().module_}
        if self.correction_ is not None:
            solvers[f"hyper-{name}"] = module
        return measure_solvers(
            solvers, rows, states, labels,
            tolerance=tolerance, floor=self.mape_floor, batch_size=batch_size,
        )  # fmt: skip

    def _label_indices(self, y: Any, n_samples: int) -> np.ndarray | None:
        """Labels as indices of the outputs; a regressor has none."""
        return None

    def with_solver(
        self, base_solver: Any = None, n_steps: int | None = None, t_span: tuple[float, float] | None = None
    ) -> Hypersolver:
        """A fitted copy with another base solver, number of steps or span, and the same correction (Fig. 6).

        Parameters
        ----------
        base_solver : str, ButcherTableau or base solver, optional
            Of the same order and number of stages as the fitted one. How well the correction serves it is for ``score``
            to tell, unless it has been fitted over a family of base solvers (``tableaus`` of
            :class:`~sklearn_hyper.MLPCorrection`).
        n_steps : int, optional
        t_span : pair of float, optional

        Returns
        -------
        estimator of the same class
            Shares the correction and the Neural ODE's weights; this one is left as it is.

        Raises
        ------
        ValueError
            If the order or number of stages differs, naming both.

        Warns
        -----
        UserWarning
            If the new step size, or the base solver, lies outside those the correction was fitted at or over.
        """
        module = self._require_fitted("module_")
        solver = module.base_solver if base_solver is None else resolve_base_solver(base_solver)
        steps = check_n_steps(module.n_steps if n_steps is None else n_steps)
        ode = module.neural_ode
        if t_span is not None:
            ode = NeuralODE(
                ode.vector_field, input_map=ode.input_map, output_map=ode.output_map, t_span=check_t_span(t_span),
                data_controlled=ode.data_controlled,
            )  # fmt: skip
        grid = solver_mesh(solver, ode.t_span, steps)
        if self.correction_ is not None:
            self._check_same_family(solver)
            self._warn_outside_fit(solver, abs(grid[1] - grid[0]))
        copied = copy.copy(self)
        if base_solver is not None:
            copied.base_solver, copied.order = base_solver, None
        copied.n_steps = steps
        copied.neural_ode_ = ode
        copied._set_module(ode, solver, grid)
        return copied

    def _warn_outside_fit(self, solver: BaseSolver, eps: float) -> None:
        low, high = self._fitted_eps
        if not low * (1 - 1e-6) <= eps <= high * (1 + 1e-6):
            warnings.warn(
                f"step size {eps:.3g} lies outside the fitted range [{low:.3g}, {high:.3g}]; check score(X), or fit "
                "with fit_n_steps=(a, b) to cover it.",
                UserWarning,
                stacklevel=3,
            )
        if not self.correction_.covers(solver):
            warnings.warn(
                f"base_solver {solver.name!r} lies outside the family that the correction was fitted over; check score(X), "
                "or fit with it among the correction's tableaus.",
                UserWarning,
                stacklevel=3,
            )

    def without_correction(self) -> Hypersolver:
        """A fitted copy that is the base solver alone: what the correction has to beat.

        Returns
        -------
        estimator of the same class
            Its ``with_solver`` takes any base solver and number of steps; a "nonstationary" one is made for its own
            number alone, so name another with it.
        """
        module = self._require_fitted("module_")
        copied = copy.copy(self)
        copied.correction_ = None
        copied._set_module(module.neural_ode, module.base_solver, module.grid)
        return copied

    def _check_same_family(self, solver: BaseSolver) -> None:
        fitted = self.base_solver_
        startups = [len(startup_methods(one)) for one in (solver, fitted)]
        if (solver.order, solver.n_stages, startups[0]) != (fitted.order, fitted.n_stages, startups[1]):
            raise ValueError(
                f"base_solver {solver.name!r} ({_kind(solver)}) cannot take over the correction fitted for {fitted.name!r} "
                f"({_kind(fitted)}); fit another one, with warm_start=False."
            )

    def to_module(self) -> HypersolvedODE:
        """A plain ``nn.Module`` that predicts: input map, unrolled steps, output map. ``torch.export`` takes it.

        Returns
        -------
        HypersolvedODE
            A copy in eval mode, on this estimator's device; tensors of ``dtype_`` in, tensors out.
        """
        return copy.deepcopy(self._require_fitted("module_"))


def _kind(solver: BaseSolver) -> str:
    n_startup = len(startup_methods(solver))
    startup = f", {n_startup} start-up steps" if n_startup else ""
    return f"order {solver.order}, {solver.n_stages} stages{startup}"


def _frozen_copy(neural_ode: NeuralODE) -> NeuralODE:
    try:
        copied = copy.deepcopy(neural_ode)
    except Exception as error:
        raise TypeError(
            f"neural_ode cannot be copied, and fit works on a frozen copy: {error}. Drop locks, open files and tensors "
            "of a graph (cached activations) from the modules, or define __deepcopy__ on the class that holds them."
        ) from error
    _refuse_hidden_modules(neural_ode)
    return copied.eval().requires_grad_(False)


def _refuse_hidden_modules(neural_ode: NeuralODE) -> None:
    """A module inside a function cannot be copied, frozen or moved: training would write to the user's own."""
    for name in ("vector_field", "input_map", "output_map"):
        part = getattr(neural_ode, name)
        if inspect.isfunction(part):
            inside = inspect.getclosurevars(part)
            hidden = [key for key, value in (inside.nonlocals | inside.globals).items() if isinstance(value, nn.Module)]
            if hidden:
                raise TypeError(
                    f"{name} is a function that calls the module {', '.join(hidden)}, which fit could neither copy nor "
                    "freeze. Pass the module itself, or an nn.Module whose forward calls it."
                )


def _wants_frame(estimator: Any) -> str | None:
    config = _get_output_config("transform", estimator)["dense"]
    return None if config == "default" else config
