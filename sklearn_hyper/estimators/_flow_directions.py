"""Fit the two directions of a flow: take the flow over, check it, and learn a correction for each direction."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ..hypersolvers import FitSettings, FittedHypersolver, Task, choose_base_solver, fit_hypersolvers
from ..hypersolvers.choose import auto_name, choose_correction
from ..hypersolvers.prepare import prepare_neural_ode
from ..hypersolvers.refitting import check_same_architecture
from ..modules.copies import frozen_copy
from ..modules.field_probes import PROBED_ROWS
from ..modules.flow import Flow, check_base_distribution, check_divergence
from ..modules.neural_ode import NeuralODE, check_neural_ode
from ..training.correction_checks import check_correction
from ..training.given_rows import Inputs, apart
from ._base import TorchEstimator, check_output_map, module_dtype


def take_flow(flow: Flow | NeuralODE, X: np.ndarray | None, n_features: int | None, base_distribution: Any) -> Flow:
    """Return a frozen copy of a fitted flow, or a flow of a bare field.

    Parameters
    ----------
    flow : Flow or NeuralODE
    X : array of shape (n_samples, n_features) or None
    n_features, base_distribution : optional
        Parameters of the estimator, for a bare field alone.
    """
    if isinstance(flow, Flow):
        given = {"base_distribution": base_distribution, "n_features": n_features}
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise ValueError(
                f"{' and '.join(names)}: only for a bare field; the fitted flow passed as neural_ode brings its own."
            )
        flow = copy.deepcopy(flow).to("cpu")  # the solvers move their copies to the device
    else:
        width = n_features if n_features is not None or X is None else X.shape[1]
        flow = _flow_of_field(flow, width, base_distribution)
    if X is not None and X.shape[1] != flow.n_features:
        raise ValueError(f"X has {X.shape[1]} features, but the flow has n_features={flow.n_features}.")
    return flow.eval().requires_grad_(False)


def _flow_of_field(neural_ode: NeuralODE, width: int | None, base_distribution: Any) -> Flow:
    if not all(isinstance(part, nn.Identity) for part in (neural_ode.input_map, neural_ode.output_map)):
        raise ValueError(
            "neural_ode is a NeuralODE with an input_map or output_map, whose log-determinant is unknown; a flow has "
            "none. Pass a NeuralODE of the field alone, and put scaling in a Pipeline."
        )
    if neural_ode.data_controlled:
        raise ValueError("neural_ode is data-controlled; a flow's field is f(t, z).")
    if width is None:
        raise ValueError("n_features is needed to fit a bare field without X: pass n_features=, or fit(X).")
    return Flow(
        frozen_copy(neural_ode).vector_field, n_features=width, t_span=neural_ode.t_span,
        base_distribution=copy.deepcopy(base_distribution),
    )  # fmt: skip


def check_directions(flow: Flow, density: NeuralODE, base: Inputs, rows: Inputs | None, settings: FitSettings) -> None:
    """Check both directions before the first solve; that of densities only if there are rows of data.

    ``base`` and ``rows`` are a few base draws and rows of data, with their conditions.
    """
    check_base_distribution(flow)
    check_neural_ode(flow.sampling(), *apart(base))
    if rows is None:
        return
    x, condition = apart(rows)
    check_divergence(flow, x[:, : flow.n_features], condition)
    if isinstance(settings.correction, nn.Module):
        settings = replace(settings, base_solver=auto_name(settings, flow.n_features))
        choice = choose_base_solver(settings, flow.n_features + 1)
        check_correction(Task(density, x, condition), choice.method, settings)


def fit_direction(
    ode: NeuralODE,
    rows: Any,
    settings: FitSettings,
    flow: Flow,
    previous: FittedHypersolver | None,
    epoch_rows: int | None = None,
    *,
    refits: bool = False,
) -> tuple[FittedHypersolver | None, bool]:
    """Fit one direction; return the result, None if Ctrl-C came before training, and whether Ctrl-C ended it.

    ``rows`` is an array, or one with a condition. With ``refits`` the field may have changed since ``previous``, whose
    units are measured again.
    """
    neural_ode = frozen_copy(ode).to(settings.device)
    dtype = module_dtype(neural_ode.dtype, rows)
    given = TorchEstimator._to_tensor(rows, dtype, "cpu")
    x, condition = apart(given)
    try:
        probed_rows, beside = apart(given[:PROBED_ROWS].to(settings.device, copy=True))
        z = prepare_neural_ode(neural_ode, probed_rows, settings, lambda z: check_output_map(neural_ode, z), beside)
        if previous is None or previous.correction is None:
            previous = None
            settings = replace(
                settings, correction=choose_correction(settings, [Task(neural_ode, probed_rows, beside)], z)
            )
            # "auto" stands for one method in both directions, though the density's state is larger.
            settings = replace(settings, base_solver=auto_name(settings, flow.n_features))
        elif refits:
            check_same_architecture(previous.neural_ode, neural_ode, probed_rows)
        task, earlier = Task(neural_ode, x, condition, epoch_rows), None if previous is None else [previous]
        (fitted,) = fit_hypersolvers([task], settings, earlier, refit_units=refits, copy=False)
    except KeyboardInterrupt:
        return None, True
    return fitted, fitted.interrupted
