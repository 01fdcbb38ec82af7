"""What every hypersolver has: parameters, how they are cloned, and the frozen steps before the Neural ODE."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from joblib import Memory
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features
from torch import nn

from ..numerics.reference import DEFAULT_TOLERANCE
from ..numerics.solve import check_n_steps
from ._base import TRAINING_CONSTRAINTS, TorchEstimator
from ._input_contract import bare, contract_of

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
        inner = [name for name in params if name.startswith("correction__")]
        if inner and isinstance(params.get("correction", self.correction), str):
            raise ValueError(
                f"{', '.join(inner)}: correction='auto' has no parameters; pass correction=MLPCorrection() or ConvCorrection(), "
                "whose parameters can be set and searched."
            )
        return super().set_params(**params)

    def _clone_parameter(self, name: str, value: Any) -> Any:
        """The *same* neural_ode: sklearn's clone would unfit it, a deep copy would multiply it."""
        return value if name == "neural_ode" else super()._clone_parameter(name, value)

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

    def _take_X(self, X: Any, fitted: TorchEstimator | None, preprocess: Any, *, reset: bool) -> np.ndarray:
        """X of a fit, as the Neural ODE takes it; later calls are held to the same.

        Parameters
        ----------
        X : array-like
        fitted : estimator or None
            The estimator that the Neural ODE was: X has to be what its own ``predict`` takes.
        preprocess : Pipeline or None
            The fitted steps before it, which check X themselves; what comes out of them is checked then.
        reset : bool
            Whether to forget what an earlier fit learned of X.
        """
        self.preprocess_ = copy.deepcopy(preprocess)
        self._contract = None if fitted is None else contract_of(fitted)
        if preprocess is None:
            return self._take_checked(X, self._contract, reset=reset)
        if reset:
            # What comes in at the door: no more than a record, for the steps may take columns by name, or text.
            vars(self).pop("n_features_in_", None)
            _check_feature_names(self, X, reset=True)
            _check_n_features(self, X, reset=True)
        X = self.preprocess_.transform(X)
        learns = self._contract is None
        if learns:
            self._contract = bare(type(self))
        X = self._contract._validate_X(X, reset=learns)
        if not reset and X.shape[1:] != self._input_shape:
            raise ValueError(
                f"the steps before the Neural ODE give samples of shape {X.shape[1:]}, those of the fit that warm_start goes "
                f"on from gave {self._input_shape}; fit anew with warm_start=False."
            )
        self._input_shape = X.shape[1:]
        return X

    def _take_checked(self, X: Any, contract: TorchEstimator | None, *, reset: bool) -> np.ndarray:
        checked = self._validate_X(X, reset=reset)
        if contract is None:
            return checked
        _check_feature_names(contract, X, reset=False)
        shape, expected = checked.shape[1:], contract._input_shape
        if shape != expected:
            raise ValueError(
                f"X has samples of shape {shape} (n_features={shape[0]}), but neural_ode was fitted on samples of shape "
                f"{expected}; pass X as neural_ode takes it. X has {shape[0]} features, but {type(contract).__name__} is "
                f"expecting {expected[0]} features as input."
            )
        if hasattr(contract, "feature_names_in_"):
            self.feature_names_in_ = contract.feature_names_in_
        return checked

    def _prepare_X(self, X: Any, *, reset: bool) -> np.ndarray:
        """Run the frozen steps of a fitted pipeline, which check X themselves, then the input check."""
        if self.preprocess_ is None:
            return self._validate_X(X, reset=reset)
        return self._contract._validate_X(self.preprocess_.transform(X), reset=reset)

    def __copy__(self) -> HypersolverBase:
        # Shallow, without the trip through pickle that BaseEstimator's state would take.
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied
