"""Small fitted configurations whose every public result is recorded in ``golden.npz``.

A configuration is a function without arguments that builds a model, fits it and returns what it gives, as a flat dict of
name to NumPy array or number. Only the public API is used, so that the file outlives a rewrite of what lies behind it. Names,
counts and labels come as strings, integers and bools, which must stay exactly what they were; all other values are floats.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from golden.fields import (
    N_IMAGES,
    N_NEW,
    ControlledConvField,
    ControlledField,
    KindAwareCorrection,
    OwnCorrection,
    conv_field,
    crescents,
    labelled,
    mlp_field,
    pendulum,
    rows,
)
from golden.values import (
    Values,
    all_values,
    density_values,
    direction_values,
    fit_values,
    flow_values,
    history_values,
    module_values,
    plain_values,
    predictions,
    prefixed,
    swapped_values,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    ConvCorrection,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
    alpha_family,
)
from sklearn_hyper.modules import AugmentedInput

SHARED = {"max_epochs": 8, "batch_size": 32, "random_state": 0}
"""What the fits of all corrections have in common."""
LEARNED = {"gain": 2.0, "batch_size": 16}
"""A field and batches with which corrections over learned coefficients find something."""


# ---------------------------------------------------------------------- fits of bare fields
def fit_mlp(
    n_features: int,
    *,
    gain: float = 2.5,
    t_span: tuple[float, float] = (0.0, 1.0),
    dtype: Any = np.float32,
    **params: Any,
) -> Values:
    """A hypersolver of a field on vectors."""
    X, X_new = rows(n_features, dtype=dtype)
    field = mlp_field(n_features, gain=gain).to(torch.from_numpy(X).dtype)
    fast = HypersolverRegressor(NeuralODE(field, t_span=t_span), **SHARED | params).fit(X)
    return plain_values(fast, X_new)


def far_span() -> Values:
    """A span whose times float32 does not resolve, of a field that takes its share of it."""
    X, X_new = rows(2)
    t_span = (1000.0, 1002.0)
    ode = NeuralODE(mlp_field(2, t_span=t_span), t_span=t_span)
    return plain_values(HypersolverRegressor(ode, n_steps=4, **SHARED).fit(X), X_new)


def far_rows(field: Any, n_features: int, **params: Any) -> Values:
    """A correction of large share, and rows so far from those of the fit that its cap is at work."""
    X, X_new = rows(n_features)
    fast = HypersolverRegressor(field, **SHARED | {"max_epochs": 12} | params).fit(X)
    far = {}
    for scale in (0.001, 5, 50):
        far |= prefixed(f"times_{scale}", {"predict": fast.predict(scale * X_new)})
    return plain_values(fast, X_new) | far | module_values(fast, 20 * X_new)


def fit_images(**params: Any) -> Values:
    """A hypersolver of a field on images of two channels."""
    X, X_new = rows(2, 8, 8)
    fast = HypersolverRegressor(conv_field(2), **SHARED | params).fit(X[:60])
    return plain_values(fast, X_new[:N_IMAGES])


def fit_controlled(**params: Any) -> Values:
    """A hypersolver of a data-controlled field, with both maps."""
    X, X_new = rows(4)
    torch.manual_seed(0)
    ode = NeuralODE(
        ControlledField(3, 4), input_map=nn.Linear(4, 3), output_map=nn.Linear(3, 2), data_controlled=True
    )  # fmt: skip
    return plain_values(HypersolverRegressor(ode, **SHARED | params).fit(X), X_new)


def controlled_images() -> Values:
    X, X_new = rows(2, 8, 8)
    ode = NeuralODE(ControlledConvField(2), data_controlled=True)
    fast = HypersolverRegressor(ode, base_solver="heun", n_steps=2, **SHARED).fit(X[:60])
    return plain_values(fast, X_new[:N_IMAGES])


def analytic_field() -> Values:
    """A field without MACs: the correction has its default width."""
    X, X_new = rows(2)
    return plain_values(HypersolverRegressor(pendulum, n_steps=4, **SHARED).fit(X), X_new)


def own_correction(**params: Any) -> Values:
    return fit_mlp(3, correction=OwnCorrection(3), **params)


def kind_aware() -> Values:
    X, X_new = rows(3)
    correction = KindAwareCorrection(3)
    fast = HypersolverRegressor(
        mlp_field(3), base_solver="heun", n_steps=3, correction=correction, **SHARED
    ).fit(X)  # fmt: skip
    return plain_values(fast, X_new) | swapped_values("midpoint", fast.with_solver("midpoint"), X_new)


def fallback() -> Values:
    """No epoch is better than the base solver, at a learning rate that throws every epoch off."""
    return fit_mlp(3, base_solver="rk4", n_steps=2, lr=0.5, finetune=None)


# ---------------------------------------------------------------------- swaps and second fits
def generalist_swaps() -> Values:
    """One net for two to six steps, with other base solvers, numbers of steps and spans."""
    X, X_new = rows(3)
    fast = HypersolverRegressor(mlp_field(3), base_solver="heun", n_steps=4, fit_n_steps=(2, 6), **SHARED).fit(X)
    return {
        **plain_values(fast, X_new),
        **swapped_values("midpoint", fast.with_solver("midpoint"), X_new),
        **swapped_values("steps", fast.with_solver(n_steps=3), X_new),
        **swapped_values("span", fast.with_solver(t_span=(0.0, 0.8)), X_new),
        **swapped_values("all", fast.with_solver(alpha_family(0.8), n_steps=5, t_span=(1.0, 0.1)), X_new),
        **swapped_values("outside", fast.with_solver(n_steps=9), X_new),
        **swapped_values("base", fast.without_correction().with_solver("rk4", n_steps=2), X_new),
    }


def multistep_swaps() -> Values:
    """A generalist over the default base solver, with other numbers of steps."""
    X, X_new = rows(6)
    fast = HypersolverRegressor(mlp_field(6), n_steps=4, fit_n_steps=(3, 6), **SHARED).fit(X)
    return {
        **plain_values(fast, X_new),
        **swapped_values("steps", fast.with_solver(n_steps=6), X_new),
        **swapped_values("span", fast.with_solver(t_span=(0.2, 1.0)), X_new),
    }


def learned_swaps() -> Values:
    """Learned coefficients on other spans, for which their mesh is the same shares."""
    X, X_new = rows(6)
    fast = HypersolverRegressor(mlp_field(6, gain=2.0), n_steps=3, **SHARED | {"batch_size": 16}).fit(X)
    return {
        **plain_values(fast, X_new),
        **swapped_values("span", fast.with_solver(t_span=(0.0, 0.9)), X_new),
        **swapped_values("base", fast.without_correction().with_solver("euler", n_steps=4), X_new),
    }


def tableau_family() -> Values:
    """A net that is fitted over a family of base solvers, and told which one it runs with."""
    X, X_new = rows(3)
    correction = MLPCorrection(hidden=10, depth=2, tableaus=[alpha_family(0.4), "midpoint", "ralston"])
    fast = HypersolverRegressor(
        mlp_field(3), base_solver="heun", n_steps=3, correction=correction, **SHARED
    ).fit(X)  # fmt: skip
    return {
        **plain_values(fast, X_new),
        **swapped_values("midpoint", fast.with_solver("midpoint"), X_new),
        **swapped_values("between", fast.with_solver(alpha_family(0.7)), X_new),
        **swapped_values("outside", fast.with_solver(alpha_family(2.0)), X_new),
    }


def conv_family() -> Values:
    """The same for a convolutional net, on the residuals alone."""
    X, X_new = rows(2, 8, 8)
    correction = ConvCorrection(hidden=6, tableaus=["midpoint"])
    fast = HypersolverRegressor(
        conv_field(2), base_solver="heun", n_steps=3, correction=correction, finetune=None, **SHARED
    ).fit(X[:60])  # fmt: skip
    return plain_values(fast, X_new[:N_IMAGES]) | swapped_values(
        "midpoint", fast.with_solver("midpoint"), X_new[:N_IMAGES]
    )


def warm_start(n_features: int, gain: float = 2.5, **params: Any) -> Values:
    """A fit, and a second one that goes on from it."""
    X, X_new = rows(n_features)
    fast = HypersolverRegressor(mlp_field(n_features, gain=gain), warm_start=True, **SHARED | params).fit(X)
    first = prefixed("first", predictions(fast, X_new))
    fast.set_params(max_epochs=5, lr=5e-3, random_state=1).fit(X)
    return first | plain_values(fast, X_new)


def other_training() -> Values:
    """Another optimizer, a callback, fewer rows, other tolerances, and a weighted score."""
    X, X_new = rows(3)
    fast = HypersolverRegressor(
        mlp_field(3), base_solver="midpoint", n_steps=3, optimizer=torch.optim.SGD, lr=0.5, batch_size=16, max_samples=80,
        validation_fraction=0.25, rtol=1e-5, atol=1e-6, mape_floor=0.1, n_jobs=None, max_epochs=6, random_state=7,
        callbacks=[LRScheduler("StepLR", step_size=3)],
    ).fit(X)  # fmt: skip
    weighted = fast.score(X_new, sample_weight=np.arange(1, N_NEW + 1))
    values = plain_values(fast, X_new) | {"score_weighted": weighted}
    fast.set_params(batch_size=1)  # predictions then take 8 rows at a time
    return values | {"batched_predict": fast.predict(X_new), "batched_trajectory": fast.trajectory(X_new)}


# ---------------------------------------------------------------------- hypersolvers of fitted estimators
def small_classifier(**params: Any) -> NeuralODEClassifier:
    torch.manual_seed(0)
    return NeuralODEClassifier(
        mlp_field(6, gain=1.5), input_map=AugmentedInput(nn.Linear(4, 2)), random_state=0, **{"max_epochs": 4} | params
    )


def classifier(**params: Any) -> Values:
    X, y, X_new, y_new = labelled(4)
    node = small_classifier().fit(X, y)
    return plain_values(HypersolverClassifier(node, **SHARED | params).fit(X), X_new, y_new)


def bare_classifier() -> Values:
    """A classifier of a module that nobody trained, with labels in the order of its outputs."""
    X, X_new = rows(3)
    torch.manual_seed(0)
    ode = NeuralODE(mlp_field(3), output_map=nn.Linear(3, 3))
    fast = HypersolverClassifier(ode, classes=[2, 0, 1], base_solver="heun", n_steps=2, finetune="output", **SHARED)
    return plain_values(fast.fit(X), X_new, np.arange(N_NEW) % 3)


def image_classifier() -> Values:
    """All defaults of images: augmented channels, a convolutional field, and a convolutional correction."""
    X, X_new = rows(1, 8, 8)
    y, y_new = ((images.mean(axis=(1, 2, 3)) > 0).astype(int) for images in (X, X_new))
    node = NeuralODEClassifier(max_epochs=2, random_state=0).fit(X[:80], y[:80])
    fast = HypersolverClassifier(node, base_solver="euler", n_steps=2, **SHARED | {"max_epochs": 4}).fit(X[:60])
    return plain_values(fast, X_new[:N_IMAGES], y_new[:N_IMAGES])


def skorch_classifier() -> Values:
    X, y, X_new, y_new = labelled(3)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        NeuralODE(mlp_field(3, gain=1.5), output_map=nn.Linear(3, 3)), criterion=nn.CrossEntropyLoss, max_epochs=2, lr=0.05,
        train_split=None, verbose=0,
    )  # fmt: skip
    classes, labels = np.unique(y, return_inverse=True)
    net.fit(X, labels.astype(np.int64))
    fast = HypersolverClassifier(net, classes=classes, base_solver="midpoint", n_steps=2, **SHARED).fit(X)
    return plain_values(fast, X_new, y_new)


def target(X: np.ndarray) -> np.ndarray:
    return 100 + 10 * np.sin(2 * X[:, 0]) + 5 * X[:, 1] * X[:, 2]


def regressor() -> Values:
    """A fitted regressor of one target with its own maps, in a default hypersolver of few steps."""
    X, X_new = rows(3)
    torch.manual_seed(0)
    node = NeuralODERegressor(
        mlp_field(5, gain=1.5), input_map=nn.Linear(3, 5), output_map=nn.Linear(5, 1), max_epochs=4, random_state=0
    ).fit(X, target(X))
    fast = HypersolverRegressor(node, n_steps=2, finetune="output", **SHARED | {"lr": 5e-3}).fit(X)
    return plain_values(fast, X_new)


def pipeline_inside() -> Values:
    """A fitted Pipeline is what the hypersolver takes: its scaler is applied frozen."""
    X, X_new = rows(3)
    X, X_new = 10 * X + 3, 10 * X_new + 3
    model = make_pipeline(StandardScaler(), NeuralODERegressor(mlp_field(3), input_map=nn.Identity(), random_state=0))
    model.set_params(neuraloderegressor__max_epochs=3).fit(X, np.stack([target(X / 10), X[:, 0]], axis=1))
    fast = HypersolverRegressor(model, base_solver="midpoint", n_steps=3, **SHARED).fit(X)
    return all_values(fast, X_new)


def pipeline_outside() -> Values:
    """A Pipeline that ends in a hypersolver."""
    X, X_new = rows(3)
    fast = HypersolverRegressor(mlp_field(3), base_solver="ab2", n_steps=4, **SHARED)
    model = make_pipeline(StandardScaler(), fast).fit(10 * X + 3)
    X_new = 10 * X_new + 3
    return {"predict": model.predict(X_new), "transform": model.transform(X_new), **fit_values(fast)}


# ---------------------------------------------------------------------- densities
def small_flow(**params: Any) -> ContinuousNormalizingFlow:
    field = mlp_field(2, gain=1.5)
    return ContinuousNormalizingFlow(field, random_state=0, **{"max_epochs": 10} | params)


def flow_matching_density(**params: Any) -> Values:
    """Both directions of a flow, with the default base solver."""
    X, X_new = crescents()
    fast = HypersolverDensity(small_flow().fit(X), n_steps=4, max_samples=100, **SHARED | params).fit(X)
    x = torch.from_numpy(X_new).to(fast.dtype_)
    with torch.no_grad():
        modules = {
            "module_density": fast.to_module("density")(x).numpy(),
            "module_density_folded": fast.to_module("density").fold()(x).numpy(),
            "module_sampling": fast.to_module()(x).numpy(),
        }
    return density_values(fast, X_new) | modules


def likelihood_density() -> Values:
    """Both directions of a flow that was trained by its likelihood, and a swap of the solver."""
    X, X_new = crescents()
    flow = small_flow(objective="likelihood", max_epochs=2, solver="rk4", n_steps=4).fit(X)
    fast = HypersolverDensity(flow, base_solver="heun", n_steps=2, max_samples=100, **SHARED).fit(X)
    swapped = fast.with_solver("midpoint")
    return density_values(fast, X_new) | prefixed("swapped", flow_values(swapped, X_new))


def bare_density() -> Values:
    """A bare field of three features with its own base distribution, and Hutchinson's trace."""
    X, X_new = rows(3)
    scale = torch.tensor([1.0, 0.5, 2.0])
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), scale), 1)
    fast = HypersolverDensity(
        mlp_field(3, gain=2.0), base_distribution=base, trace="rademacher", base_solver="midpoint", n_steps=3, max_samples=100,
        **SHARED,
    ).fit(X)  # fmt: skip
    return density_values(fast, X_new)


def sampler_alone() -> Values:
    """Sampling without data, with learned coefficients."""
    fast = HypersolverDensity(
        mlp_field(5, gain=2.0), n_features=5, base_solver="nonstationary", n_steps=3, max_samples=100, **SHARED
    ).fit()  # fmt: skip
    report = fast.solver_report(n_samples=64, random_state=6)
    values = {"sample": fast.sample(N_NEW, random_state=5), "inverse_transform": fast.inverse_transform(rows(5)[1])}
    return values | direction_values("sampler", fast.sampler_, report)


def pipeline_density() -> Values:
    """A fitted Pipeline that ends in a flow: samples are carried back through its scaler."""
    X, X_new = crescents()
    model = make_pipeline(StandardScaler(), small_flow()).fit(X)
    fast = HypersolverDensity(model, base_solver="euler", n_steps=3, max_samples=100, **SHARED).fit(X)
    return density_values(fast, X_new)


def density_warm_start() -> Values:
    """A second fit of both directions that goes on from the first, at a lower rate."""
    X, X_new = crescents()
    fast = HypersolverDensity(
        small_flow().fit(X), base_solver="midpoint", n_steps=2, max_samples=100, warm_start=True, **SHARED
    ).fit(X)  # fmt: skip
    return density_values(fast.set_params(max_epochs=4, lr=5e-3).fit(X), X_new)


# ---------------------------------------------------------------------- Neural ODEs' own fits
def node_classifier() -> Values:
    """A fit through dopri5, and one more epoch by ``partial_fit``."""
    X, y, X_new, y_new = labelled(4)
    node = small_classifier().fit(X, y)
    values = {
        "predict": node.predict(X_new),
        "predict_proba": node.predict_proba(X_new),
        "score": node.score(X_new, y_new),
    }
    node.partial_fit(X, y)
    return values | history_values(node.history_) | {"partial_proba": node.predict_proba(X_new)}


def node_classifier_adjoint() -> Values:
    """All defaults but the adjoint's gradients, and a warm start."""
    X, y, X_new, _ = labelled(3)
    node = NeuralODEClassifier(adjoint=True, max_epochs=2, random_state=0, warm_start=True).fit(X, y)
    first = node.predict_proba(X_new)
    node.fit(X, y)
    return {"first_proba": first, "predict_proba": node.predict_proba(X_new), **history_values(node.history_)}


def node_regressor(**params: Any) -> Values:
    X, X_new = rows(3)
    node = NeuralODERegressor(max_epochs=3, random_state=0, **params).fit(X, target(X))
    return {"predict": node.predict(X_new), "score": node.score(X_new, target(X_new)), **history_values(node.history_)}


def flow(**params: Any) -> Values:
    X, X_new = crescents()
    fitted = small_flow(**params).fit(X)
    values = flow_values(fitted, X_new) | history_values(fitted.history_)
    nfe = [row["nfe"] for row in fitted.history_ if "nfe" in row]
    return values | ({"history_nfe": np.array(nfe, dtype=float)} if nfe else {})


def flow_warm_start() -> Values:
    """Flow matching, then the likelihood from the same weights."""
    X, X_new = crescents()
    fitted = small_flow(warm_start=True, max_epochs=5).fit(X)
    fitted.set_params(objective="likelihood", max_epochs=1, adjoint=True).fit(X)
    return flow_values(fitted, X_new) | history_values(fitted.history_)


CONFIGURATIONS: dict[str, Callable[[], Values]] = {
    # Base solvers, with what a correction is trained for.
    "euler": partial(fit_mlp, 2, base_solver="euler", n_steps=4),
    "midpoint": partial(fit_mlp, 3, base_solver="midpoint", n_steps=3, finetune="trajectory"),
    "heun_trajectory": partial(fit_mlp, 3, base_solver="heun", n_steps=3, loss="trajectory", finetune=None),
    "ralston_both_losses": partial(fit_mlp, 4, base_solver="ralston", n_steps=3, loss="residual+trajectory"),
    "rk3": partial(fit_mlp, 4, base_solver="rk3", n_steps=2),
    "rk4": partial(fit_mlp, 2, base_solver="rk4", n_steps=2),
    "rk4_38_residual": partial(fit_mlp, 2, base_solver="rk4_38", n_steps=2, finetune=None),
    "alpha_family": partial(fit_mlp, 2, base_solver=alpha_family(0.3), n_steps=3),
    "ab2": partial(fit_mlp, 5, base_solver="ab2", n_steps=4, loss="residual+trajectory", finetune="trajectory"),
    "ab3_trajectory": partial(fit_mlp, 3, base_solver="ab3", n_steps=5, finetune="trajectory"),
    "ab4": partial(fit_mlp, 3, base_solver="ab4", n_steps=6),
    # What "auto" stands for.
    "auto_few_dimensions": partial(fit_mlp, 2, n_steps=4),
    "auto_one_step": partial(fit_mlp, 6, n_steps=1),
    "auto_order_1": partial(fit_mlp, 6, order=1, n_steps=4, correction=MLPCorrection(hidden=12)),
    "auto_order_2": partial(fit_mlp, 5, order=2, n_steps=2, correction=MLPCorrection(gate=False, depth=1)),
    "auto_order_3": partial(fit_mlp, 3, order=3, n_steps=2, correction=MLPCorrection(activation="tanh")),
    "auto_order_4": partial(
        fit_mlp, 3, order=4, n_steps=2, batch_size=16, correction=MLPCorrection(activation="softplus", hidden=9)
    ),
    # Learned coefficients.
    "auto_learned": partial(fit_mlp, 8, n_steps=4, **LEARNED),
    "learned_net": partial(fit_mlp, 6, base_solver="nonstationary", n_steps=3, **LEARNED),
    "learned_residual": partial(fit_mlp, 3, base_solver="nonstationary", n_steps=4, gain=3.0, finetune=None),
    "learned_trajectory": partial(
        fit_mlp, 3, base_solver="nonstationary", n_steps=5, finetune="trajectory", **LEARNED | {"lr": 5e-3}
    ),
    "learned_both_losses": partial(
        fit_mlp, 3, base_solver="nonstationary", n_steps=4, gain=3.0, loss="residual+trajectory"
    ),
    "learned_swaps": learned_swaps,
    # Step sizes.
    "paper": partial(fit_mlp, 2, base_solver="euler", n_steps=4, fit_n_steps=4, loss="residual", finetune=None),
    "fit_at_other_steps": partial(fit_mlp, 3, base_solver="heun", n_steps=3, fit_n_steps=4),
    "generalist_swaps": generalist_swaps,
    "multistep_swaps": multistep_swaps,
    # Corrections.
    "prelu_gate_off": partial(
        fit_mlp, 2, base_solver="heun", n_steps=3, correction=MLPCorrection(12, activation="prelu", gate=False)
    ),
    "tableau_family": tableau_family,
    "own_correction": partial(own_correction, base_solver="midpoint", n_steps=3),
    "kind_aware_correction": kind_aware,
    "own_correction_multistep": partial(own_correction, base_solver="ab3", n_steps=4),
    "images_auto": partial(fit_images, n_steps=3),
    "images_heun_gate_off": partial(
        fit_images,
        base_solver="heun",
        n_steps=2,
        finetune="trajectory",
        correction=ConvCorrection(hidden=4, depth=2, activation="tanh", gate=False, kernel_size=5),
    ),
    "images_multistep": partial(fit_images, base_solver="ab2", n_steps=4, correction=ConvCorrection(hidden=5)),
    "images_mlp": partial(fit_images, base_solver="euler", n_steps=2, correction=MLPCorrection(hidden=6, depth=1)),
    "conv_family": conv_family,
    # Fields, spans and dtypes.
    "controlled": partial(fit_controlled, base_solver="heun", n_steps=2, finetune="output"),
    "controlled_multistep": partial(fit_controlled, n_steps=4, fit_n_steps=(3, 5)),
    "controlled_images": controlled_images,
    "analytic_field": analytic_field,
    "far_rows": partial(far_rows, pendulum, 2, base_solver="euler", n_steps=3, max_epochs=8, lr=1e-2),
    "far_rows_multistep": partial(far_rows, mlp_field(3), 3, base_solver="ab2", n_steps=3, lr=5e-2),
    "reverse": partial(fit_mlp, 3, base_solver="midpoint", n_steps=3, t_span=(1.0, 0.0)),
    "reverse_learned": partial(fit_mlp, 6, n_steps=3, t_span=(1.0, 0.0), **LEARNED | {"gain": 1.5}),
    "float64": partial(fit_mlp, 3, base_solver="heun", n_steps=3, gain=2.0, dtype=np.float64),
    "float64_learned": partial(fit_mlp, 5, n_steps=3, dtype=np.float64, **LEARNED),
    "long_span": partial(fit_mlp, 3, base_solver="midpoint", n_steps=4, gain=1.7, t_span=(-0.5, 2.5)),
    "far_span": far_span,
    # Fits that go another way.
    "fallback": fallback,
    "warm_start": partial(warm_start, 2, base_solver="euler", n_steps=4),
    "warm_start_learned": partial(warm_start, 6, base_solver="nonstationary", n_steps=3, **LEARNED),
    "other_training": other_training,
    # Hypersolvers of fitted estimators.
    "classifier": partial(classifier, base_solver="midpoint", n_steps=2, finetune="output"),
    "classifier_auto": partial(classifier, n_steps=3),
    "bare_classifier": bare_classifier,
    "image_classifier": image_classifier,
    "skorch_classifier": skorch_classifier,
    "regressor": regressor,
    "pipeline_inside": pipeline_inside,
    "pipeline_outside": pipeline_outside,
    # Densities.
    "flow_matching_density": flow_matching_density,
    "likelihood_density": likelihood_density,
    "bare_density": bare_density,
    "sampler_alone": sampler_alone,
    "pipeline_density": pipeline_density,
    "density_warm_start": density_warm_start,
    # Neural ODEs' own fits.
    "node_classifier": node_classifier,
    "node_classifier_adjoint": node_classifier_adjoint,
    "node_regressor": node_regressor,
    "node_regressor_rk4": partial(node_regressor, solver="rk4", n_steps=6, t_span=(0.0, 2.0)),
    "flow_matching": flow,
    "flow_likelihood": partial(flow, objective="likelihood", max_epochs=2, kinetic=0.1, jacobian=0.05),
    "flow_likelihood_rk4": partial(
        flow, objective="likelihood", max_epochs=2, solver="rk4", n_steps=6, trace="rademacher"
    ),
    "flow_warm_start": flow_warm_start,
}


def run(name: str) -> dict[str, np.ndarray]:
    """All values of a configuration as arrays, and the kinds of warnings that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = CONFIGURATIONS[name]()
    ignored = (DeprecationWarning, FutureWarning)
    kinds = sorted({one.category.__name__ for one in caught if not issubclass(one.category, ignored)})
    return {key: np.asarray(value) for key, value in values.items()} | {"warnings": np.array(kinds, dtype=str)}
