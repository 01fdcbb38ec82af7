"""What every hypersolver has: parameters, how they are cloned, and the frozen steps before the Neural ODE."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from joblib import Memory
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_array
from torch import nn

from ..numerics.reference import DEFAULT_TOLERANCE
from ..numerics.solve import check_n_steps
from ._base import TRAINING_CONSTRAINTS, TorchEstimator

_LOSSES = {"residual", "trajectory", "residual+trajectory"}
_FINETUNES = {"terminal", "trajectory", "output"}


class HypersolverBase(TorchEstimator):
    """Stores parameters; shares the fitted ``neural_ode`` by reference when cloned."""

    _parameter_constraints: dict = {
        **TRAINING_CONSTRAINTS,
        "neural_ode": "no_validation",
        "base_solver": "no_validation",
        "order": [None, Interval(Integral, 1, 5, closed="both")],
        "fit_n_steps": [None, Interval(Integral, 1, None, closed="left"), tuple, list],
        "correction": [StrOptions({"auto"}), HasMethods(["build", "get_params"]), nn.Module],
        "loss": [StrOptions(_LOSSES)],
        "finetune": [None, StrOptions(_FINETUNES)],
        "max_samples": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "mape_floor": [Interval(Real, 0, None, closed="neither")],
        "memory": [None, str, Memory, HasMethods(["cache"])],
        "n_jobs": [None, Integral],
    }

    def __init__(
        self,
        neural_ode,
        *,
        base_solver="auto",
        order=None,
        n_steps=10,
        fit_n_steps=None,
        correction="auto",
        loss="residual",
        finetune="terminal",
        rtol=DEFAULT_TOLERANCE,
        atol=None,
        max_samples="auto",
        max_epochs=120,
        lr=2e-2,
        batch_size=128,
        optimizer=torch.optim.Adam,
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
        self.neural_ode = neural_ode
        self.base_solver = base_solver
        self.order = order
        self.n_steps = n_steps
        self.fit_n_steps = fit_n_steps
        self.correction = correction
        self.loss = loss
        self.finetune = finetune
        self.rtol = rtol
        self.atol = atol
        self.max_samples = max_samples
        self.max_epochs = max_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.callbacks = callbacks
        self.validation_fraction = validation_fraction
        self.mape_floor = mape_floor
        self.memory = memory
        self.warm_start = warm_start
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of this estimator; those *inside* the fitted neural_ode are not its to set.

        Parameters
        ----------
        deep : bool, default True
            Also the parameters of a correction spec, as ``correction__hidden``.

        Returns
        -------
        dict
        """
        params = super().get_params(deep=False)
        if deep and hasattr(self.correction, "get_params"):
            params.update({f"correction__{key}": value for key, value in self.correction.get_params().items()})
        return params

    def set_params(self, **params: Any) -> HypersolverBase:
        """Set parameters; ``neural_ode__*`` is refused, since changing a fitted model would unfit it.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self
        """
        nested = [name for name in params if name.startswith("neural_ode__")]
        if nested:
            raise ValueError(
                f"{', '.join(nested)}: the fitted neural_ode cannot be changed through the hypersolver. Fit another "
                "Neural ODE and search over neural_ode=[FrozenEstimator(...), ...]."
            )
        return super().set_params(**params)

    def __sklearn_clone__(self) -> HypersolverBase:
        """Clone with the *same* neural_ode: sklearn's clone would unfit it, a deep copy would multiply it."""
        params = {name: value for name, value in self.get_params(deep=False).items() if name != "neural_ode"}
        copied = type(self)(self.neural_ode, **{name: clone(value, safe=False) for name, value in params.items()})
        for name in ("_metadata_request", "_sklearn_output_config", "_skl_callbacks"):
            if name in vars(self):
                setattr(copied, name, copy.deepcopy(vars(self)[name]))
        return copied

    def _fit_range(self) -> int | tuple[int, int] | None:
        if self.fit_n_steps is None or isinstance(self.fit_n_steps, Integral):
            return self.fit_n_steps
        pair = tuple(self.fit_n_steps)
        if len(pair) != 2:
            raise ValueError(f"fit_n_steps must be None, an integer or a pair (a, b), got {self.fit_n_steps!r}.")
        fewest, most = (check_n_steps(value, "fit_n_steps") for value in pair)
        if fewest >= most:
            raise ValueError(
                f"fit_n_steps=(a, b) needs a < b, got {self.fit_n_steps!r}; pass an integer for one step size."
            )
        return fewest, most

    def _prepare_X(self, X: Any, *, reset: bool) -> np.ndarray:
        """Run the frozen steps of a fitted pipeline, then the input check."""
        if self.preprocess_ is None:
            return self._validate_X(X, reset=reset)
        # Names and number of features are those that come in at the door, not what the steps make of them.
        _check_feature_names(self, X, reset=reset)
        _check_n_features(self, X, reset=reset)
        X = check_array(self.preprocess_.transform(X), dtype=(np.float64, np.float32))
        if reset:
            self._input_shape = X.shape[1:]
        return X

    def __copy__(self) -> HypersolverBase:
        # Shallow, without the trip through pickle that BaseEstimator's state would take.
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied
