"""What is made of a fitted hypersolver: copies with other solvers, torch modules, ONNX files and model files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import nn

from .. import __version__
from ..hypersolvers import FittedHypersolver
from ..hypersolvers.described import describe_fitted, read_fitted
from ..modules.closed_list import Writer
from ..modules.described_modules import describe_flow, read_flow
from ..modules.flow import Flow, LogDensity
from ..modules.hypersolved_ode import HypersolvedODE, OutputsAt
from ..modules.neural_ode import NeuralODE
from ..modules.onnx_export import FirstOutput, check_target, require_onnx
from ..training.given_rows import Inputs, apart
from ._calibrated import drop_calibration
from ._conditions import count_entries, with_condition
from ._eval_times import check_one_grid
from ._inputs import prepare_rows
from ._learned_conditions import list_conditions
from ._saving import EstimatorReader
from ._sources import describe_source, read_source
from .flows import append_noise


class DerivedMixin:
    """Copies, modules and files of a regressor or a classifier."""

    def with_solver(
        self,
        base_solver: Any = None,
        n_steps: int | None = None,
        t_span: tuple[float, float] | None = None,
        *,
        step_rtol: float | None = None,
    ) -> Self:
        """Return a fitted copy with another base solver, number of steps, span or tolerance, and the same correction.

        Parameters
        ----------
        base_solver : str, ButcherTableau or base solver, optional
            A base solver of the same order and number of stages as the fitted one. The correction need not serve it
            well: check with ``score``, or fit over a family of base solvers, with ``tableaus`` of
            :class:`~sklearn_hyper.MLPCorrection`.
        n_steps : int, optional
            Another number of steps. Learned coefficients serve a single number ("nonstationary", which "auto" stands
            for with states of more than four numbers). To change it after the fit, fit with ``fit_n_steps=(a, b)``, for
            which "auto" is "ab2".
        t_span : pair of float, optional
            Another span of time.
        step_rtol : float, optional
            Another tolerance, for adaptive steps. The correction serves all of them.

        Returns
        -------
        estimator of the same class
            It shares the correction and the Neural ODE's weights. This estimator is left as it is.

        Raises
        ------
        ValueError
            If the order or number of stages differs; the error names both. If learned coefficients are asked for
            another number of steps.

        Warns
        -----
        UserWarning
            If the correction was not fitted at the new step size, or not over the new base solver.
        """
        product = self._require_product()
        changed = self._with_product(
            product.with_solver(base_solver, n_steps, t_span, step_rtol=step_rtol, stacklevel=3)
        )
        if base_solver is not None:
            changed.base_solver, changed.order = base_solver, None
        changed.n_steps, changed.step_rtol = changed.fitted_.n_steps, changed.fitted_.settings.step_rtol
        return changed

    def without_correction(self) -> Self:
        """Return a fitted copy without the correction: the base solver alone, which the correction has to beat.

        Returns
        -------
        estimator of the same class
            Its ``with_solver`` takes any base solver and number of steps. Only "nonstationary" keeps its number of
            steps; to change that, name another base solver too.
        """
        return self._with_product(self._require_product().without_correction())

    def _with_product(self, fitted: FittedHypersolver) -> Self:
        changed = copy.copy(self)
        changed.fitted_ = fitted
        drop_calibration(changed)
        return changed

    def to_module(self) -> HypersolvedODE:
        """Return an ``nn.Module`` that predicts and can be trained further: input map, unrolled steps, output map.

        It computes with the weights it holds, so training them changes its output. Its ``states_at(x, times)`` gives
        states at times of your own. Its ``fold()`` returns the module for deployment and ``torch.export``: faster, and
        with the correction fixed. This estimator's own methods run such a folded module.

        Returns
        -------
        HypersolvedODE
            A copy in eval mode with frozen weights, on this estimator's device. It takes tensors of ``dtype_`` and
            returns tensors. They equal ``predict`` up to rounding; those of its ``fold()`` are equal bit for bit.

        Examples
        --------
        Fine-tune the correction alone; ``module.requires_grad_(True)`` would train the field and the maps as well.

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
        return self._require_product().to_module()

    def _describe_models(self, writer: Writer) -> dict[str, Any]:
        fitted = self._require_product()
        return {
            "fitted": describe_fitted(fitted, writer, *apart(self._drawn_rows(self._input_shape))),
            "source": describe_source(self.neural_ode, writer),
        }

    def _read_models(self, described: Mapping[str, Any], reader: EstimatorReader) -> None:
        self.fitted_ = read_fitted(described["fitted"], reader)
        module = copy.deepcopy(self.fitted_.neural_ode)
        self.neural_ode = read_source(described["source"], module, self.preprocess_, reader)
        self._head = None  # of a skorch net, which a file does not hold

    def export_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        X: Any = None,
        condition: Any = None,
        preprocessed: bool = False,
        t_eval: Any = None,
    ) -> Path:
        """Write the fitted solver as an ONNX file, which runs without torch and without this package.

        The file takes ``X`` of shape (n_samples, ...) in ``dtype_``, with any number of rows. Its ``output`` is what
        ``predict`` gives. A classifier's file gives ``logits`` and ``probabilities`` instead. Its metadata hold the
        ``classes`` as a JSON list, in the order of the columns, and the ``threshold`` of a binary skorch net. Needs the
        ``onnx`` extra: ``pip install "sklearn-hyper[onnx]"``.

        A condition called ``label`` is an input ``condition_label``, with one entry a row: floats in ``dtype_``,
        integers and the indices of categories in int64. Metadata ``condition`` list name, kind, shape and categories.

        Parameters
        ----------
        path : str or path
            The file to write. An older file is replaced only when the new one is complete.
        X : array-like of shape (n_samples, ...), optional
            Rows on which ONNX Runtime is compared with torch before the file is written. They may differ by 1e-4
            (float32) or 1e-7 (float64) of the largest output. By default, draws of a standard normal.
        condition : optional
            As in ``fit``, for rows to compare on. By default, without X: draws of a standard normal, zeros for
            integers, and all categories. Pass some where the field takes no such values.
        preprocessed : bool, default False
            Steps of a Pipeline that were passed with the Neural ODE are not part of the file. True confirms that you
            know: the file then takes what ``preprocess_.transform(X)`` returns.
        t_eval : array-like of shape (n_times,), optional
            Times of the outputs, fixed in the file and listed in its metadata, instead of the end of the span. Outputs
            then have shape (n_samples, n_times, ...), as those of ``trajectory(X, output=True, t_eval=t_eval)``.

        Returns
        -------
        Path
            Where the file is.

        Raises
        ------
        ImportError
            If the extra is not installed.
        ConditionError
            If the fit had a condition, and X comes without one, or it is another: see ``predict``.
        ValueError
            If the field, a map or the correction cannot be traced by torch or run by ONNX Runtime. If there are frozen
            steps and ``preprocessed`` is False. If the path's folder does not exist. If ``t_eval`` is wrong, see
            ``trajectory``, or is given with steps that are adaptive or with a skorch net's labels.
        RuntimeError
            If ONNX Runtime and torch disagree; no file is written then.
        """
        check_target(path)
        require_onnx()
        fitted = self._require_product()
        if self.preprocess_ is not None and not preprocessed:
            raise ValueError(
                f"the steps before the Neural ODE, {self.preprocess_!r}, cannot become part of the file, which would "
                "take their output. Pass preprocessed=True to say that you feed it preprocess_.transform(X)."
            )
        x, beside = apart(rows_to_compare(self, X, condition, self._input_shape))
        outputs, metadata = self._onnx_outputs()
        metadata = {"sklearn_hyper_version": __version__, **metadata, **list_conditions(self.condition_)}
        wrap = self._wrap_for_onnx
        if t_eval is not None:
            times = self._times_to_export(t_eval)
            metadata["t_eval"] = json.dumps(times)

            def wrap(module: nn.Module) -> nn.Module:
                return self._wrap_for_onnx(OutputsAt(module, times))

        return fitted.export_onnx(path, x, beside, wrap=wrap, outputs=outputs, metadata=metadata)

    def _times_to_export(self, t_eval: Any) -> tuple[float, ...]:
        fitted = self._require_product()
        times = check_one_grid(t_eval, fitted.neural_ode.t_span, "write a file for all times that occur")
        fitted.check_times(times)
        if vars(self).get("_head") is not None:
            raise ValueError(
                "t_eval with labels of a skorch net, which makes probabilities of outputs at the end of t_span alone. "
                "Leave t_eval out, or export a HypersolverRegressor, whose outputs are those of the net's module."
            )
        return times

    def _wrap_for_onnx(self, module: nn.Module) -> nn.Module:
        return FirstOutput(module) if self._squeeze_output else module

    def _onnx_outputs(self) -> tuple[list[str], dict[str, str]]:
        """Return the names of a file's outputs, and its metadata."""
        return ["output"], {}


def rows_to_compare(estimator: Any, X: Any, condition: Any, shape: tuple[int, ...]) -> Inputs:
    """Return the rows on which an export is compared with torch: those given, and drawn ones for what is not."""
    if X is not None:
        rows = prepare_rows(estimator, X, condition)
    elif condition is None:
        return estimator._drawn_rows(shape)
    else:
        n_entries = count_entries(condition, 1)
        drawn = estimator._drawn_rows(shape, *([n_entries] if n_entries > 1 else []))
        rows = with_condition(estimator, condition, apart(drawn)[0].numpy())
    return estimator._to_tensor(rows, estimator.dtype_, "cpu")


class DensityDerivedMixin:
    """Copies, modules and files of a HypersolverDensity."""

    def with_solver(self, base_solver: Any = None, n_steps: int | None = None) -> Self:
        """Return a fitted copy with another base solver or number of steps, and the same corrections (Fig. 6).

        Parameters
        ----------
        base_solver : str, ButcherTableau or base solver, optional
            A base solver of the same order and number of stages as the fitted one.
        n_steps : int, optional
            Another number of steps.

        Returns
        -------
        HypersolverDensity

        Raises
        ------
        ValueError
            If the order or number of stages differs.
        """
        self._require_fitted("sampler_")
        copied = copy.copy(self)
        drop_calibration(copied)
        copied.sampler_ = self.sampler_.with_solver(base_solver, n_steps, stacklevel=3)
        copied.n_steps = copied.sampler_.n_steps
        if base_solver is not None:
            copied.base_solver, copied.order = base_solver, None
        if self.density_ is not None:
            copied.density_ = self.density_.with_solver(base_solver, n_steps, stacklevel=3)
        return copied

    def without_correction(self) -> Self:
        """Return a fitted copy without the corrections: the base solver alone, which they have to beat.

        Returns
        -------
        HypersolverDensity
            Its ``with_solver`` takes any base solver and number of steps. Only "nonstationary" keeps its number of
            steps; to change that, name another base solver too.
        """
        self._require_fitted("sampler_")
        copied = copy.copy(self)
        drop_calibration(copied)
        copied.sampler_ = self.sampler_.without_correction()
        if self.density_ is not None:
            copied.density_ = self.density_.without_correction()
        return copied

    def to_module(self, direction: str = "sampling") -> nn.Module:
        """Return an ``nn.Module`` of either direction, which can be trained further.

        :meth:`HypersolverRegressor.to_module` shows how. Its ``fold()`` returns the faster module for deployment.

        Parameters
        ----------
        direction : {"sampling", "density"}, default "sampling"
            "sampling" maps base states to data, in the flow's coordinates; ``torch.export`` takes its ``fold()``.
            "density" maps data to log densities. If the trace is estimated, it takes Hutchinson's noise as further
            columns. Call it under ``torch.no_grad()`` unless you need gradients.

        Returns
        -------
        nn.Module
            A copy in eval mode with frozen weights. It takes tensors of ``dtype_`` and returns tensors.
        """
        if direction not in ("sampling", "density"):
            raise ValueError(f"direction must be 'sampling' or 'density', got {direction!r}.")
        self._require_fitted("sampler_")
        if direction == "sampling":
            return self.sampler_.to_module()
        self._require_density()
        return LogDensity(self.density_.to_module(), copy.deepcopy(self.flow_)).eval()

    def export_onnx(self, path: str | os.PathLike[str], *, condition: Any = None, preprocessed: bool = False) -> Path:
        """Write the sampler as an ONNX file, which runs without torch and without this package.

        The file takes base states ``X`` of shape (n_samples, n_features): draws of the base distribution in ``dtype_``.
        A condition is a further input, as in :meth:`HypersolverRegressor.export_onnx`. Its ``output`` are samples.
        Densities are not exported, because they differentiate the field. Needs the ``onnx`` extra: ``pip install
        "sklearn-hyper[onnx]"``.

        Parameters
        ----------
        path : str or path
            The file to write. An older file is replaced only when the new one is complete.
        condition : optional
            As in ``fit``, to compare on. By default drawn, as :meth:`HypersolverRegressor.export_onnx` does.
        preprocessed : bool, default False
            Steps of a Pipeline that were passed with the flow are not part of the file. True confirms that you know:
            the file's samples are then inputs of ``preprocess_.inverse_transform``.

        Returns
        -------
        Path
            Where the file is.

        Raises
        ------
        ImportError, ValueError, RuntimeError
            As :meth:`HypersolverRegressor.export_onnx`.
        """
        self._require_fitted("sampler_")
        if self.preprocess_ is not None and not preprocessed:
            raise ValueError(
                f"the steps before the flow, {self.preprocess_!r}, cannot become part of the file, whose samples would "
                "be in their output's coordinates. Pass preprocessed=True to say that you apply "
                "preprocess_.inverse_transform."
            )
        metadata = {"sklearn_hyper_version": __version__, **list_conditions(self.condition_)}
        rows = rows_to_compare(self, None, condition, (self.flow_.n_features,))
        return self.sampler_.export_onnx(path, *apart(rows), metadata=metadata)

    def _describe_models(self, writer: Writer) -> dict[str, Any]:
        sampler = self._require_fitted("sampler_")
        width, density = self.flow_.n_features, self.density_
        base, beside = apart(self._drawn_rows((width,)))
        rows = append_noise(np.random.default_rng(0).normal(size=base.shape), self._noise, self._noise_seed)
        x = self._to_tensor(rows, self.dtype_, "cpu")
        return {
            "flow": describe_flow(self.flow_, writer),
            "sampler": describe_fitted(sampler, writer, base, beside),
            "density": None if density is None else describe_fitted(density, writer, x, beside),
            "source": describe_source(self.neural_ode, writer),
            "is_flow": isinstance(self.neural_ode, Flow),
        }

    def _read_models(self, described: Mapping[str, Any], reader: EstimatorReader) -> None:
        self.flow_ = read_flow(described["flow"], reader).requires_grad_(False)
        self.sampler_ = read_fitted(described["sampler"], reader)
        density = described["density"]
        self.density_ = None if density is None else read_fitted(density, reader)
        flow = copy.deepcopy(self.flow_)
        module = flow if described["is_flow"] else NeuralODE(flow.vector_field, t_span=flow.t_span)
        self.neural_ode = read_source(described["source"], module, self.preprocess_, reader)
