"""How a hypersolver is fitted."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from torch import Tensor, nn

from ..modules.field_probes import PROBED_ROWS, check_start, settle_parts
from ..modules.hypersolved_ode import HypersolvedODE
from ..modules.neural_ode import NeuralODE, check_neural_ode
from ..modules.seeding import seeded
from ..modules.solver_binding import solver_family
from ..numerics.base_solvers import DEFAULT, NONSTATIONARY, BaseSolver, resolve_base_solver, startup_methods
from ..numerics.residuals import Residual, compute_residuals
from ..numerics.row_errors import numbered_rows
from ..numerics.solve import check_n_steps, solver_mesh
from ..numerics.units import state_units
from ..training.batches import check_lone_rows
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors, refuse_scoring
from ..training.coefficient_fitting import classical_starts, fit_coefficients
from ..training.correction_checks import check_calls, check_parts, is_own
from ..training.correction_fitting import FittedCorrection, build_correction, fit_correction
from ..training.fit_sets import max_rows, solve_ends
from ..training.fit_settings import FitSettings
from ..training.objectives import check_overflow
from ..training.residual_sets import StepSizes
from ._base import check_device, check_output_map, module_dtype
from ._copies import check_saveable, freeze, frozen_copy
from ._fitted_neural_ode import FittedNeuralODE, resolve_neural_ode
from ._given_targets import spread
from ._hypersolver_base import HypersolverBase

_MAX_SAMPLES = 2000
_CHECKED_ROWS = 32
_ROUGH = 1e-3
_FEW_DIMENSIONS = 4
"""Up to here a correction with a tenth of f's MACs knows the state well; beyond, learned coefficients are worth more."""
_CONTRACT = (
    "The contract of a correction is forward(eps, s, z, stages, x=None) -> tensor like z; start-up steps of 'ab2' to 'ab4' and "
    "'nonstationary' hand it fewer stages."
)


class HypersolverFit(HypersolverBase):
    """Fit: the base solver that "auto" stands for, checks before any work, references, and what a fit leaves behind."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the correction on dopri5 trajectories that start from X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs as the Neural ODE takes them: with its feature names, in its order; of a Pipeline, whatever its steps take.
            No labels are needed.
        y : array-like, optional
            Nothing is learned from it. Where given, it is compared with what the Neural ODE predicts: labels with
            ``classes_``, targets of the outputs' shape with the outputs.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If ``neural_ode`` is not fitted.
        TypeError
            If ``neural_ode`` is none of the accepted forms, or predicts by a method of its own that cannot be taken over; if a
            function holds a module, or the Neural ODE cannot be copied.
        ValueError
            If a parameter, X or the span of time does not do, or steps of the base solver overflow from rows of X, which
            are named. If a callback
            scores predictions, or monitors what no epoch records. If a correction of your own has nothing to train, holds
            modules where ``parameters()`` does not find them, is random, mixes rows or writes into its arguments; or cannot learn
            from a batch of one row (BatchNorm) and would have to. If y has another length, numbers that are not finite, or labels that are not
            those of the Neural ODE, as meta-estimators that recode labels hand over.
        VectorFieldError
            If the field's signature, or the shape, dtype or device of its output, is wrong, or a map's; if one of them is random
            or mixes rows.
        ReferenceSolveError
            If dopri5 cannot solve the Neural ODE from some rows of X; it names them.
        TrainingDivergedError
            If the training loss is no longer finite.
        KeyboardInterrupt
            Ctrl-C is passed on once the state is right: the best weights of the epochs that were finished. Before an epoch
            of the correction is finished (in reference solves, in learning coefficients) the estimator stays as it was.

        Warns
        -----
        GradientWarning
            If training goes through the field, and autograd's derivative of it is not that of its values.
        PersistenceWarning
            If the result could not be pickled.
        ConvergenceWarning
            If no epoch was better than the base solver, which the fit then falls back to; if errors are larger than the states at
            the end of the span, or than the outputs.
        UserWarning
            If one of X and the Neural ODE's estimator has feature names and the other has none; if the Neural ODE's outputs
            predict y worse than a constant.
        """
        with self._all_or_nothing():
            interrupted = self._fit(X, y)
        if interrupted:
            raise KeyboardInterrupt
        return self

    def _fit(self, X: Any, y: Any) -> bool:
        check_n_steps(self.n_steps)
        refuse_scoring(self.callbacks, "a hypersolver")
        check_monitors(self.callbacks, LOSS_NET_RECORDS, "Monitor one of those.")
        self._resolve_solver(0)  # a wrong name is an error before anything is solved
        fit_range = self._fit_range()
        device = check_device(self.device)
        resolved = resolve_neural_ode(self.neural_ode)
        warm = getattr(self, "correction_", None) if self.warm_start else None
        X = self._take_X(X, resolved.estimator, resolved.preprocess, reset=warm is None)
        frozen, two_rows, z = self._look_at(resolved, X, y, device)
        solver = self._resolve_solver(z[0].numel())
        if warm is not None:
            solver = self._resume_solver(solver, frozen.t_span)
        sizes = StepSizes.from_parameters(int(self.n_steps), fit_range)
        self._check_range(frozen, solver, sizes, float(state_units(z, frozen.n_unitless).max()))
        settings = self._settings(fit_range)
        chosen = self._subsample(len(X), lambda: max_rows(frozen, two_rows, z, solver, settings))
        n_fitted = self._check_n_samples(len(chosen))
        rows = self._to_tensor(X if len(chosen) == len(X) else X[chosen], self.dtype_, "cpu")
        check_start(frozen, rows, chosen)
        with numbered_rows(range(len(z)), len(X)):
            self._check_correction(frozen, z, frozen.control(two_rows), solver, n_fitted)
        if frozen.state_size is None:
            frozen.measure_size(rows.to(device))
        with numbered_rows(chosen.tolist(), len(X)):
            learns = self._solver_name(z[0].numel()) == NONSTATIONARY
            solver, fitted = self._fit_parts(frozen, rows, solver, settings, warm, learns)
        self.neural_ode_ = frozen
        self.correction_ = fitted.correction
        if fitted.correction is None:
            self._warn_of_fallback(fitted.valid_loss)
        self._warn_of_errors(fitted.relative_errors, solver)
        self.net_, self.history_, self.delta_ = fitted.net, fitted.history, fitted.delta
        self.errors_ = fitted.errors
        self.n_samples_fit_ = len(chosen)
        span = abs(frozen.t_span[1] - frozen.t_span[0])
        self._fitted_eps = (fitted.fitted_range[0] * span, fitted.fitted_range[1] * span)
        self._n_features_out = z[0].numel()
        self._set_module(frozen, solver, solver_mesh(solver, frozen.t_span, self.n_steps))
        return fitted.interrupted

    def _look_at(
        self, resolved: FittedNeuralODE, X: np.ndarray, y: Any, device: torch.device
    ) -> tuple[NeuralODE, Tensor, Tensor]:
        """A frozen copy of the Neural ODE, found to be one that can be solved and saved; two rows of X, and their states."""
        self.device_ = str(device)
        frozen = self._follow_net(frozen_copy(resolved.module), resolved.net).to(device)
        self.dtype_ = module_dtype(frozen.dtype, X)
        few_rows = self._to_tensor(X[:PROBED_ROWS], self.dtype_, device)
        z = check_neural_ode(frozen, few_rows[:2])
        self._check_output(frozen, z, resolved)
        check_saveable(frozen, needed_for=self._pickles_in_fit())
        residuals_alone = self.loss == "residual" and self.finetune is None and self._solver_name(0) != NONSTATIONARY
        settle_parts(frozen, few_rows, differentiates=not residuals_alone)
        freeze(frozen)  # a field may make its layers when it is called first
        if resolved.checked is not None:
            self._check_predictions(frozen, self._checked_rows(X), resolved)
        if y is not None:
            self._check_y(frozen, X, y)
        return frozen, few_rows[:2], z

    def _pickles_in_fit(self) -> str | None:
        """The parameter for which a fit pickles the Neural ODE."""
        if self.memory is not None:
            return f"memory={self.memory!r}"
        return None if self.n_jobs in (None, 1) else f"n_jobs={self.n_jobs}"

    def _fit_parts(
        self, neural_ode: NeuralODE, x: Tensor, solver: BaseSolver, settings: FitSettings, warm: Any, learns: bool
    ) -> tuple[BaseSolver, FittedCorrection]:
        """Learn coefficients, if the base solver has some to learn, and the correction over them."""
        # One solve of the ends serves both; where the states between are needed too, their mesh is not yet known.
        ends = None if settings.needs_mesh(solver) else solve_ends(neural_ode, x, settings)
        if learns:
            # A correction that goes on belongs to the coefficients it was fitted on.
            solver = fit_coefficients(neural_ode, x, settings, ends) if warm is None else self.base_solver_
        return solver, fit_correction(neural_ode, x, solver, settings, warm, ends)

    def _solver_name(self, n_state: int) -> Any:
        """``base_solver``, or what "auto" stands for with states of so many numbers."""
        if self.base_solver != "auto" or self.order is not None:
            return self.base_solver
        if 1 in (self.n_steps, self.fit_n_steps):
            return "euler"
        # Learned coefficients serve one number of steps, and the terminal state alone.
        wants_one = self.fit_n_steps in (None, self.n_steps)
        wants_terminal_state = self.loss == "residual" and self.finetune in ("terminal", "output")
        return NONSTATIONARY if n_state > _FEW_DIMENSIONS and wants_one and wants_terminal_state else DEFAULT

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
        self._check_same_family(solver, "fit another one, with warm_start=False")
        return solver

    def _settings(self, fit_range: Any) -> FitSettings:
        names = (
            "correction", "loss", "finetune", "rtol", "atol", "max_epochs", "lr", "batch_size", "optimizer", "callbacks",
            "validation_fraction", "memory", "n_jobs", "random_state", "verbose",
        )  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        return FitSettings(n_steps=int(self.n_steps), fit_n_steps=fit_range, device=self.device_, **own)

    def _check_n_samples(self, n_samples: int) -> int:
        """Number of rows that are not held out."""
        n_valid = max(1, round(self.validation_fraction * n_samples))
        if n_samples - n_valid < 1:
            raise ValueError(
                f"n_samples={n_samples} is too few for validation_fraction={self.validation_fraction}: {n_valid} held out, "
                f"{n_samples - n_valid} left to fit. At least 2 samples are needed (got n_samples={n_samples})."
            )
        return n_samples - n_valid

    def _warn_of_fallback(self, valid_loss: float) -> None:
        warnings.warn(
            "no epoch was better than the base solver on held-out rows without exceeding its largest error there (best "
            f"valid_loss {valid_loss:.3g}; 1 is the base solver), so this fit falls back to it: correction_ is None. Lower "
            "lr, raise max_epochs, or give more rows.",
            ConvergenceWarning,
            stacklevel=6,
        )

    def _warn_of_errors(self, relative_errors: dict[str, float], solver: BaseSolver) -> None:
        large = [f"{share:.3g} times the size of {what}" for what, share in relative_errors.items() if not share <= 1]
        if not large:
            return
        warnings.warn(
            f"the fit ends with errors of {' and '.join(large)} on held-out rows: steps of "
            f"base_solver={solver.name!r} with n_steps={self.n_steps} are too long for this field. Raise n_steps, or take "
            "a base solver of higher order.",
            ConvergenceWarning,
            stacklevel=6,
        )

    def _check_range(self, neural_ode: NeuralODE, solver: BaseSolver, sizes: StepSizes, size: float) -> None:
        """Refuse units of time, for states of that size, in which residuals are out of the range of the fit's dtype."""
        span = abs(neural_ode.t_span[1] - neural_ode.t_span[0])
        power = solver.order + 1
        largest = math.log10(torch.finfo(self.dtype_).max) - 2
        powers = [power * math.log10(share * span) for share in (sizes.low, sizes.high)]
        if max(abs(log - offset) for log in powers for offset in (0, math.log10(size))) > largest:
            raise ValueError(
                f"neural_ode.t_span={neural_ode.t_span} with base_solver={solver.name!r}: eq. 6 divides by eps^{power}, with eps "
                f"from {sizes.low * span:.3g} to {sizes.high * span:.3g} and states of size {size:.3g}, which leaves the range of "
                f"{self.dtype_}. Measure time in units that make t_span about one long, take a base solver of lower order, or fit in float64."
            )

    def _check_startup(self, solver: BaseSolver) -> None:
        n_startup = len(startup_methods(solver))
        for name in ("n_steps", "fit_n_steps"):
            value = getattr(self, name)
            most = value[-1] if isinstance(value, (tuple, list)) and value else value
            if n_startup and isinstance(most, Integral) and most <= n_startup:
                raise ValueError(
                    f"{name}={value!r} with base_solver={solver.name!r} makes start-up steps only; {name} must reach "
                    f"{n_startup + 1}, or use {startup_methods(solver)[0].name!r}."
                )

    def _set_module(self, neural_ode: NeuralODE, solver: BaseSolver, grid: tuple[float, ...]) -> None:
        self.base_solver_, self.order_ = solver, solver.order
        self.module_ = HypersolvedODE(neural_ode, solver, self.correction_, grid).eval().fold()

    def _check_output(self, neural_ode: NeuralODE, z: Tensor, resolved: FittedNeuralODE) -> None:
        check_output_map(neural_ode, z)
        self._squeeze_output = resolved.squeeze

    @abstractmethod
    def _follow_net(self, neural_ode: NeuralODE, net: Any) -> NeuralODE:
        """Take over what a skorch net makes of its module's outputs."""

    def _checked_rows(self, X: np.ndarray) -> np.ndarray:
        """A few rows, in the dtype that a net's module takes."""
        return self._to_tensor(X[spread(len(X), _CHECKED_ROWS)], self.dtype_, "cpu").numpy()

    def _rough_outputs(self, neural_ode: NeuralODE, X: np.ndarray) -> np.ndarray:
        """The Neural ODE's own outputs, as exact as comparing them with y needs."""
        rtol = max(self.rtol, _ROUGH)
        return self._in_batches(lambda x: neural_ode(x, rtol=rtol, atol=self.atol), X)

    @abstractmethod
    def _check_predictions(self, neural_ode: NeuralODE, rows: np.ndarray, resolved: FittedNeuralODE) -> None:
        """What a net, or an estimator with a predict of its own, predicts must follow from what is taken over of it."""

    @abstractmethod
    def _check_y(self, neural_ode: NeuralODE, X: np.ndarray, y: Any) -> None:
        """Nothing is learned from y, but it must be what the Neural ODE predicts."""

    def _check_correction(
        self, neural_ode: NeuralODE, z: Tensor, x: Tensor | None, solver: BaseSolver, n_rows: int = 2
    ) -> None:
        """Build g and call it on two rows, so that a wrong one shows before any solve."""
        eps, n_past = (neural_ode.t_span[1] - neural_ode.t_span[0]) / self.n_steps, len(startup_methods(solver))
        grid = [neural_ode.t_span[0] + k * eps for k in range(n_past + 2)]
        with torch.no_grad(), seeded(0, z.device):
            samples = compute_residuals(
                neural_ode.vector_field, torch.stack([z] * len(grid)), grid, solver, x=x, t_span=neural_ode.t_span
            )
            for sample in samples:
                check_overflow(sample.target, solver.name, self.n_steps)
            blocks = [(samples[-1], member) for member in solver_family(self.correction, solver)]
            net = build_correction(self.correction, neural_ode, solver, blocks, x).net
            if is_own(net):
                check_parts(net)
            for sample in samples[:: len(samples) - 1] if n_past else samples[-1:]:  # a start-up step, and a full one
                n_stages = len(sample.stages)
                try:
                    g = net(sample.eps, sample.time(), z.clone(), [stage.clone() for stage in sample.stages], x)
                except Exception as error:
                    raise ValueError(
                        f"correction={self.correction!r} fails on a step of {solver.name!r} with {n_stages} stages: {error}. "
                        f"{_CONTRACT}"
                    ) from error
                if not isinstance(g, Tensor) or (g.shape, g.dtype, g.device) != (z.shape, z.dtype, z.device):
                    got = f"shape {tuple(g.shape)}, {g.dtype}" if isinstance(g, Tensor) else type(g).__name__
                    raise ValueError(
                        f"correction={self.correction!r} returns {got} for a state of shape {tuple(z.shape)}, {z.dtype}. "
                        f"{_CONTRACT}"
                    )
            if is_own(net):
                check_calls(net, samples[-1], z, x)
            self._check_lone_rows(net, samples[-1], x, n_rows)

    def _check_lone_rows(self, net: nn.Module, step: Residual, x: Tensor | None, n_rows: int) -> None:
        stages, x = [stage[:1] for stage in step.stages], None if x is None else x[:1]
        inputs = (step.eps, step.time(), step.z[:1], stages, x)
        check_lone_rows(net, lambda module: module(*inputs), n_rows, self.batch_size, "correction")

    def _subsample(self, n_samples: int, most: Callable[[], int]) -> np.ndarray:
        """Indices of the rows to fit on; with "auto" ``most`` says how many fit in memory."""
        limit = min(_MAX_SAMPLES, most()) if self.max_samples == "auto" else self.max_samples
        if n_samples <= limit:
            return np.arange(n_samples)
        seed = None if self.random_state is None else check_random_state(self.random_state).randint(2**31 - 1)
        return np.sort(np.random.default_rng(seed).choice(n_samples, limit, replace=False))

    def _check_same_family(self, solver: BaseSolver, advice: str) -> None:
        fitted = self.base_solver_
        startups = [len(startup_methods(one)) for one in (solver, fitted)]
        if (solver.order, solver.n_stages, startups[0]) != (fitted.order, fitted.n_stages, startups[1]):
            raise ValueError(
                f"base_solver {solver.name!r} ({_kind(solver)}) cannot take over the correction fitted for {fitted.name!r} "
                f"({_kind(fitted)}); {advice}."
            )


def _kind(solver: BaseSolver) -> str:
    n_startup = len(startup_methods(solver))
    startup = f", {n_startup} start-up steps" if n_startup else ""
    return f"order {solver.order}, {solver.n_stages} stages{startup}"
