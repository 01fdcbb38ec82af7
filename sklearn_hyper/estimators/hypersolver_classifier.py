"""HypersolverClassifier: a fitted Neural ODE classifier in, a fast one out."""

from __future__ import annotations

import copy
import json
from typing import Any, Unpack

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import column_or_1d
from torch import Tensor, nn

from ..calibration.measuring import OUTPUT, outputs_of
from ..modules.neural_ode import NeuralODE
from ..modules.onnx_export import WithProbabilities
from ..numerics.reference import DEFAULT_TOLERANCE
from ..training.skorch_nets import NetHead, check_predictions, net_labels, predicts_labels
from ._base import check_output_map, label_indices, refuse_no_labels, softmax, store_parameters
from ._calibrated import ASKED, Asked, Wanted
from ._fitted_neural_ode import FittedNeuralODE
from ._given_targets import check_agreement, check_given_labels, spread
from ._hypersolver import Hypersolver
from ._inputs import prepare_rows


class HypersolverClassifier(ClassifierMixin, Hypersolver):
    """Make a fitted Neural ODE classifier fast, and predict its labels.

    It has the parameters and attributes of :class:`HypersolverRegressor` and works in the same way, except that
    ``predict`` gives labels and ``score`` is the accuracy.

    Parameters
    ----------
    neural_ode : estimator, Pipeline, search, skorch net or NeuralODE
        A fitted :class:`NeuralODEClassifier` in any form that :class:`HypersolverRegressor` takes. Its output map gives
        logits. The outputs of a skorch net mean what its criterion and ``predict_nonlinearity`` say; labels and
        probabilities are those that the net predicts, including a binary net's ``threshold``.
    classes : array-like of shape (n_classes,), optional
        Labels in the order of the logits. Needed for a bare module, which has no labels.
    base_solver, order, n_steps, fit_n_steps, correction, loss, finetune : optional
        The solver and its correction: see :class:`HypersolverRegressor`.
    stepping, step_rtol, step_controller, row_times : optional
        Steps that choose themselves: see :class:`HypersolverRegressor`.
    rtol, atol, max_samples, max_epochs, lr, batch_size, optimizer, callbacks, validation_fraction : optional
        References and training: see :class:`HypersolverRegressor`.
    mape_floor, memory, warm_start, device, n_jobs, random_state, verbose : optional
        All else: see :class:`HypersolverRegressor`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, in the order of the columns of ``predict_proba``.
    module_, correction_, base_solver_, order_, neural_ode_, net_ : object
        The fitted solver and its parts: see :class:`HypersolverRegressor`.
    delta_, errors_, refit_, history_, n_samples_fit_, n_features_in_ : object
        Records of the fit: see :class:`HypersolverRegressor`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> slow = NeuralODEClassifier(max_epochs=10, random_state=0).fit(X, y)
    >>> fast = HypersolverClassifier(slow, n_steps=2, max_epochs=20, random_state=0).fit(X)  # no labels needed
    >>> bool((fast.predict(X) == slow.predict(X)).mean() > 0.97)
    True
    """

    _parameter_constraints: dict = {**Hypersolver._parameter_constraints, "classes": [None, "array-like"]}

    def __init__(
        self,
        neural_ode,
        *,
        classes=None,
        base_solver="auto",
        order=None,
        n_steps=10,
        fit_n_steps=None,
        stepping="fixed",
        step_rtol=1e-3,
        step_controller="pi",
        row_times=None,
        correction="auto",
        loss="residual",
        finetune="terminal",
        rtol=DEFAULT_TOLERANCE,
        atol=None,
        max_samples="auto",
        extra_rows=None,
        max_epochs=120,
        lr=2e-2,
        batch_size=128,
        optimizer="auto",
        callbacks=None,
        validation_fraction=0.1,
        mape_floor=1e-2,
        memory=None,
        warm_start=False,
        device="cpu",
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        store_parameters(self, locals())

    def _check_output(self, neural_ode: NeuralODE, z: Tensor, resolved: FittedNeuralODE) -> None:
        super()._check_output(neural_ode, z, resolved)
        with torch.no_grad():
            outputs = check_output_map(neural_ode, z)
            probabilities = outputs if self._head is None else self._head(outputs)
        classes = resolved.classes if self.classes is None else np.asarray(self.classes)
        if classes is None and resolved.net is not None and predicts_labels(resolved.net):
            classes = np.arange(probabilities.shape[-1])
        if classes is None:
            raise ValueError(
                "classes=None: neural_ode brings no labels (it is no fitted classifier); pass classes=[...] in the "
                "order of the logits, or use HypersolverRegressor."
            )
        if probabilities.ndim != 2 or probabilities.shape[1] != len(classes):
            raise ValueError(
                f"the output map must return logits of shape (n_samples, {len(classes)}), one a class, got "
                f"{tuple(outputs.shape)}."
            )
        self.classes_ = classes

    def _follow_net(self, neural_ode: NeuralODE, net: Any) -> NeuralODE:
        self._head = None if net is None else NetHead(net).to(self.device_)
        return neural_ode

    def _check_predictions(self, neural_ode: NeuralODE, rows: Any, resolved: FittedNeuralODE) -> None:
        model, outputs = resolved.checked, self._own_outputs(neural_ode, rows)
        # Where its probabilities are nan, the model's own predict gives the first class: argmax of nan is 0.
        probabilities, indices = self._probabilities(outputs), np.maximum(self._indices(outputs), 0)
        check_predictions(model, "predict_proba", self._predictions(model, "predict_proba", rows), probabilities)
        if self.classes is not None:
            return
        if resolved.net is not None:
            self.classes_ = net_labels(model, rows, indices, probabilities.shape[1])
        else:
            check_predictions(model, "predict", self._predictions(model, "predict", rows), self.classes_[indices])

    def _check_y(self, neural_ode: NeuralODE, X: Any, y: Any) -> None:
        y = check_given_labels(y, self.classes_, len(X))
        rows, lacks_some = spread(len(X)), len(np.unique(y)) < len(self.classes_)
        indices = self._indices(self._rough_outputs(neural_ode, X[rows]))
        check_agreement(y[rows], self.classes_[indices], self.classes_, lacks_some=lacks_some)

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Return the probabilities of outputs: their softmax, or what a skorch net makes of them."""
        if self._head is None:
            return softmax(outputs)
        with torch.no_grad():
            return self._head(torch.from_numpy(outputs).to(self.device_)).cpu().numpy()

    def _indices(self, outputs: np.ndarray) -> np.ndarray:
        """Return the labels of outputs as indices of ``classes_``; -1 where their probabilities are nan."""
        if self._head is None:
            return label_indices(outputs)
        probabilities = self._probabilities(outputs)
        indices = self._head.indices(probabilities)
        if np.isnan(probabilities).any():
            indices[np.isnan(probabilities).any(axis=1)] = -1
        return indices

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    def _label_indices(self, y: Any, n_samples: int) -> np.ndarray | None:
        y = column_or_1d(y)
        unknown = np.setdiff1d(y, self.classes_)
        if len(y) != n_samples or len(unknown):
            raise ValueError(
                f"y must hold one of classes_ {self.classes_.tolist()} for each of the {n_samples} rows of X, got "
                f"{len(y)} labels, of which {unknown.tolist()} are not among the classes."
            )
        order = np.argsort(self.classes_)  # classes= is in the order of the logits, which need not be sorted
        return order[np.searchsorted(self.classes_, y, sorter=order)]

    __metadata_request__predict = dict.fromkeys(ASKED)

    def predict(self, X: Any, *, condition: Any = None, **asked: Unpack[Asked]) -> Any:
        """Return the label with the largest logit.

        Where the Neural ODE was a skorch net's, return what the net's own ``predict`` gives.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.
        **asked : optional
            ``return_bound``, ``coverage``, ``bound``, ``tol``, ``atol``, ``alpha``, ``route`` and ``return_info``:
            bounds on the error of the logits, and tolerances of them (of the probabilities, where the Neural ODE was a
            skorch net's). As in :meth:`HypersolverRegressor.predict`. They need :meth:`conformalize`. For labels, see
            :meth:`predict_set`.

        Returns
        -------
        ndarray of shape (n_samples,)
            In a tuple with the bound and the info, where those are asked for.

        Raises
        ------
        TypeError
            If there is no such keyword.
        NotCalibratedError
            If anything is asked for that needs a calibration, and this solver has none.
        ValueError
            If probabilities of some rows are nan. The error names these rows and holds them in its attribute ``rows``.
            If a value is out of its range or has no effect, or two contradict each other.
        ReferenceSolveError
            If rows have to go to dopri5 for a tolerance, and it cannot solve them: there is no label then, as there is
            none from the Neural ODE itself. The error names the rows. ``transform(X, tol=)`` gives nan for them.
        """
        wanted = Wanted.of(self, "predict", asked)
        if wanted.is_plain:
            outputs, beside, whose = self._apply("forward", X, condition), [], "predict_proba gives nan"
        else:
            # Labels cannot be nan.
            ends, beside = self._answer(X, OUTPUT, wanted, condition=condition, needs_all=True)
            outputs, whose = outputs_of(ends, self._require_product().map_output), "probabilities are nan"
        labels = self.classes_[refuse_no_labels(self._indices(outputs), whose)]
        return (labels, *beside) if beside else labels

    def predict_set(
        self, X: Any, *, condition: Any = None, coverage: float = 0.99, bound: str = "learned"
    ) -> np.ndarray:
        r"""Return the labels that dopri5 may give: those that the bound on the logits' error cannot exclude.

        With logits l and their bound b, the label j stays if :math:`\max_i l_i - l_j \le \sqrt 2 \, b`. So dopri5's
        label is in the set wherever the bound holds. All labels are in it where logits or bound are not finite. Needs
        :meth:`conformalize`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.
        coverage : float, default 0.99
            The share of rows whose bound is to hold, between 0 and 1. It is aimed at and measured, not guaranteed: see
            :meth:`conformalize`.
        bound : {"learned", "verified"}, default "learned"
            As in :meth:`HypersolverRegressor.predict`.

        Returns
        -------
        ndarray of bool of shape (n_samples, n_classes)
            Columns in the order of ``classes_``. A row with a single True cannot change its label.

        Raises
        ------
        NotCalibratedError, CalibrationRowsError, ValueError
            As :meth:`predict`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> slow = NeuralODEClassifier(max_epochs=10, random_state=0).fit(X, y)
        >>> fast = HypersolverClassifier(slow, n_steps=2, max_epochs=20, random_state=0).fit(X[::2])
        >>> sets = fast.conformalize(X[1::2]).predict_set(X[1::2], coverage=0.9)
        >>> sets.shape
        (75, 3)
        """
        ends, (limit,) = self._answer(X, OUTPUT, Wanted(True, coverage, bound), condition=condition)
        scores = self._scores_of_labels(outputs_of(ends, self._final_outputs))
        is_known = np.isfinite(scores).all(axis=1) & np.isfinite(limit)
        with np.errstate(invalid="ignore"):  # inf - inf
            excluded = scores.max(axis=1, keepdims=True) - scores > np.sqrt(2) * limit[:, None]
        return ~(excluded & is_known[:, None])

    def _final_outputs(self, ends: Tensor) -> np.ndarray:
        outputs = super()._final_outputs(ends)
        return outputs if self._head is None else self._probabilities(outputs)

    def _scores_of_labels(self, outputs: np.ndarray) -> np.ndarray:
        """Return numbers whose largest is the label, and which move no farther than the outputs do."""
        threshold = None if self._head is None else self._head.threshold
        if threshold is None:
            return outputs
        return np.stack([np.full(len(outputs), threshold), outputs[:, 1]], axis=1).astype(outputs.dtype)

    def predict_proba(self, X: Any, *, condition: Any = None) -> np.ndarray:
        """Return the softmax of the logits.

        Where the Neural ODE was a skorch net's, return what the net's own ``predict_proba`` gives.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return self._probabilities(self._apply("forward", X, condition))

    def _wrap_for_onnx(self, module: nn.Module) -> nn.Module:
        return WithProbabilities(module, copy.deepcopy(self._head))

    def _onnx_outputs(self) -> tuple[list[str], dict[str, str]]:
        metadata = {"classes": json.dumps(np.asarray(self.classes_).tolist(), default=str)}
        if self._head is not None and self._head.threshold is not None:
            metadata["threshold"] = repr(self._head.threshold)
        return ["logits", "probabilities"], metadata

    def agreement(self, X: Any, *, condition: Any = None) -> float:
        """Return the share of labels on which this hypersolver and its dopri5 reference agree.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.

        Returns
        -------
        float
            1 where the hypersolver changes no prediction.

        Raises
        ------
        ReferenceSolveError
            If dopri5 cannot solve some rows of X; it names them.
        ValueError
            If probabilities of some rows are nan; it names them.
        """
        fitted = self._require_product()
        outputs = fitted.map_output(self._reference_states(prepare_rows(self, X, condition)))
        expected = refuse_no_labels(self._indices(outputs), "the output map of dopri5's states gives nan")
        return float(np.mean(self.predict(X, condition=condition) == self.classes_[expected]))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None, *, condition: Any = None) -> float:
        """Return the accuracy on labels y.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional
        condition : optional
            As in :meth:`fit`. Searches pass it to ``score`` after ``set_score_request(condition=True)``.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If y is None. To score without labels, use ``sklearn_hyper.evaluation.neg_mape_scorer`` or
            ``agreement_scorer``. A search without y and ``scoring`` turns this error into nan for every candidate,
            warns of each, and keeps the first one. With ``error_score="raise"`` it stops here.
        """
        if y is None:
            raise ValueError(
                "HypersolverClassifier.score needs labels y, got None. To score without labels, against dopri5, pass "
                "scoring=sklearn_hyper.evaluation.neg_mape_scorer or agreement_scorer. (A search's default error_score "
                "turns this error into nan scores, and its choice means nothing then.)"
            )
        return float(accuracy_score(y, self.predict(X, condition=condition), sample_weight=sample_weight))
