"""What a fitted hypersolver does, but what predict and score mean."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

from ..metrics import SolverReport, mape_floor, mean_absolute_percentage_error
from ..modules.hypersolved_ode import FoldedODE, HypersolvedODE
from ..modules.neural_ode import NeuralODE
from ..modules.solver_binding import make_view
from ..numerics.base_solvers import BaseSolver, resolve_base_solver
from ..numerics.row_errors import list_rows, refuse_undefined
from ..numerics.solve import check_n_steps, check_t_span, solver_mesh
from ..training.references import lost_rows, solve_references
from ._base import UnsolvedRowsWarning, outside_inference_mode
from ._hypersolver_fit import HypersolverFit
from ._onnx_export import OnnxExportMixin
from ._reports import measure_solvers

_UNDEFINED = "the output map of dopri5's states at the end of t_span is not finite"


class Hypersolver(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OnnxExportMixin, HypersolverFit):
    """Inference, reports and solver swaps, shared by the regressor and the classifier."""

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
            Logits, where the Neural ODE is a classifier's; of a skorch net what its module gives, logits or probabilities; nan
            for rows that dopri5 cannot solve.

        Raises
        ------
        ReferenceSolveError
            If dopri5 can solve no row.

        Warns
        -----
        UnsolvedRowsWarning
            If dopri5 cannot solve some of the rows; it names them.
        """
        module = self._require_fitted("module_")
        states = self._reference_states(module.neural_ode, self._prepare_X(X, reset=False), keep_lost=True)
        lost = lost_rows(states[None])
        if lost:
            solved = np.setdiff1d(np.arange(len(states)), lost)
            states[lost] = states[solved[0]].clone()  # for the output map, which may not take nan
            warnings.warn(
                f"dopri5 cannot solve the Neural ODE from {len(lost)} of {len(states)} rows of X ({list_rows(lost)}), whose "
                "references are nan: the field is stiff or its solution grows without bound from there. Leave those rows "
                "out of score and solver_report.",
                UnsolvedRowsWarning,
                stacklevel=2,
            )
        output = self._map_output(module.neural_ode, states)
        if lost:
            output[lost] = np.nan
        return output[:, 0] if self._squeeze_output else output

    def _reference_states(self, neural_ode: NeuralODE, X: np.ndarray, keep_lost: bool = False) -> Tensor:
        with outside_inference_mode():
            rows = self._to_tensor(X, self.dtype_, "cpu")
            return solve_references(
                neural_ode, rows, neural_ode.t_span, rtol=self.rtol, atol=self.atol, memory=self.memory,
                n_jobs=self.n_jobs, device=self.device_, verbose=self.verbose, keep_lost=keep_lost,
            )[-1]  # fmt: skip

    def _reference_output(self, neural_ode: NeuralODE, X: np.ndarray) -> np.ndarray:
        return self._map_output(neural_ode, self._reference_states(neural_ode, X))

    def _map_output(self, neural_ode: NeuralODE, states: Tensor) -> np.ndarray:
        with torch.no_grad():
            parts = states.split(self.batch_size)
            return np.concatenate([neural_ode.output_map(z.to(self.device_)).cpu().numpy() for z in parts])

    def _neg_mape(self, X: Any, sample_weight: Any = None) -> float:
        module = self._require_fitted("module_")
        X = self._prepare_X(X, reset=False)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        reference = self._reference_output(module.neural_ode, X)
        refuse_undefined(torch.from_numpy(reference), _UNDEFINED)
        return -mean_absolute_percentage_error(
            reference, self._in_batches(module, X), floor=mape_floor(self.mape_floor, reference, sample_weight),
            sample_weight=sample_weight,
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
            rtol of the dopri5 that is timed and listed, relative to the states' size; errors are against ``reference(X)``.
        batch_size : int, default 256
            Rows of the batch that is timed.

        Returns
        -------
        SolverReport
            Rows by solver: MAPE of the outputs, relative L2 of the terminal states (mean, median, p99, max), NFE, MACs
            a sample, milliseconds a batch, speed-up over dopri5, relative overhead O_r of g (section 6).

        Raises
        ------
        ReferenceSolveError
            If dopri5 cannot solve some rows of X; it names them.
        ValueError
            If the output map of dopri5's states is not finite for some rows of X; it names them.
        """
        module = self._require_fitted("module_")
        X = self._prepare_X(X, reset=False)
        rows = self._to_tensor(X, self.dtype_, self.device_)
        states = self._reference_states(module.neural_ode, X).to(self.device_)
        refuse_undefined(torch.from_numpy(self._map_output(module.neural_ode, states)), _UNDEFINED)
        labels = None if y is None else self._label_indices(y, len(X))
        name = f"{module.base_solver.name} K={module.n_steps}"
        solvers = {name: self.without_correction().module_}
        if self.correction_ is not None:
            solvers[f"hyper-{name}"] = module
        with outside_inference_mode():
            return measure_solvers(
                solvers, rows.clone(), states.clone(), labels, indices=self._indices,
                tolerance=tolerance, floor=self.mape_floor, batch_size=batch_size,
            )  # fmt: skip

    def _label_indices(self, y: Any, n_samples: int) -> np.ndarray | None:
        """Labels as indices of the outputs; a regressor has none."""
        return None

    def _indices(self, outputs: np.ndarray) -> np.ndarray:
        """Labels of outputs, as indices; of a classifier."""
        return outputs.argmax(axis=1)

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
            Learned coefficients ("nonstationary", which "auto" stands for with states of more than four numbers) are made for
            one number of steps: where others are wanted, fit with ``fit_n_steps=(a, b)``, for which "auto" is "ab2".
        t_span : pair of float, optional

        Returns
        -------
        estimator of the same class
            Shares the correction and the Neural ODE's weights; this one is left as it is.

        Raises
        ------
        ValueError
            If the order or number of stages differs, naming both, or learned coefficients are asked for another number of steps.

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
            ode = make_view(ode)
            ode.t_span = check_t_span(t_span)
        grid = solver_mesh(solver, ode.t_span, steps)
        if self.correction_ is not None:
            self._check_same_family(solver, f"fit another hypersolver with {solver.name!r}")
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
        # A step far from zero is the difference of two numbers that are rounded.
        slack = 1e-6 + 4 * np.finfo(float).eps * max(map(abs, self.neural_ode_.t_span)) / eps
        if not low * (1 - slack) <= eps <= high * (1 + slack):
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

    def _live_module(self) -> HypersolvedODE:
        module = self._require_fitted("module_")
        return HypersolvedODE(module.neural_ode, module.base_solver, self.correction_, module.grid).eval()

    def _copy_folded(self) -> FoldedODE:
        return copy.deepcopy(self._require_fitted("module_"))

    def to_module(self) -> HypersolvedODE:
        """A plain ``nn.Module`` that predicts and can be trained further: input map, unrolled steps, output map.

        It runs the weights it holds. Its ``fold()`` gives the module for deployment and ``torch.export``: what this
        estimator's own methods run, faster and with the correction fixed.

        Returns
        -------
        HypersolvedODE
            A copy in eval mode with frozen weights, on this estimator's device; tensors of ``dtype_`` in, tensors out. Equal to
            predict up to rounding, its ``fold()`` bit for bit.

        Examples
        --------
        Fine-tuning the correction; ``module.requires_grad_(True)`` trains field and maps with it.

        >>> import torch
        >>> from sklearn_hyper import HypersolverRegressor
        >>> x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
        >>> fast = HypersolverRegressor(lambda t, z: -z, base_solver="euler", n_steps=2, max_epochs=5, random_state=0)
        >>> module = fast.fit(x.numpy()).to_module()
        >>> weights = module.correction.requires_grad_(True).parameters()
        >>> optimizer = torch.optim.Adam(weights, lr=1e-3)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     losses.append((module(x) - x / torch.e).pow(2).mean())
        ...     losses[-1].backward()
        ...     _ = optimizer.step()
        >>> bool(losses[-1] < losses[0])
        True
        >>> deployed = module.fold()
        >>> torch.allclose(deployed(x), module(x))
        True
        """
        return copy.deepcopy(self._live_module())


def _wants_frame(estimator: Any) -> str | None:
    config = _get_output_config("transform", estimator)["dense"]
    return None if config == "default" else config
