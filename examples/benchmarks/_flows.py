"""Flows that several benchmarks share: of two-dimensional densities and of real tables, fitted once and kept."""

from __future__ import annotations

import numpy as np
from _results import data_file, fitted
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_hyper import ContinuousNormalizingFlow
from sklearn_hyper.datasets import make_density

N_TRAIN = 5000


def training_rows(density: str) -> np.ndarray:
    """What the flow of a density is fitted on."""
    return make_density(density, N_TRAIN, random_state=0).astype(np.float32)


def load_flow(density: str, objective: str, cache: str) -> ContinuousNormalizingFlow:
    """The flow of a two-dimensional density, by "flow_matching" or, from there on, by maximum "likelihood"."""

    def train() -> ContinuousNormalizingFlow:
        X = training_rows(density)
        if objective == "flow_matching":
            return ContinuousNormalizingFlow(batch_size=256, random_state=0).fit(X)
        flow = load_flow(density, "flow_matching", cache)
        flow.set_params(objective="likelihood", warm_start=True, max_epochs=10, lr=1e-3, rtol=1e-3, atol=1e-3)
        return flow.fit(X)

    return fitted(cache, f"flow {density} {objective}", train)


def load_table(name: str, folder: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a real table to train on and to test on, standardised by the former."""
    if name.startswith("uci_"):
        X = np.load(data_file("uci_tabular.npz", folder))[name.removeprefix("uci_")]
        X = X[np.random.default_rng(0).permutation(len(X))[:8000]]
    elif name == "digits_pca":
        X = load_digits().data
    else:
        X = {"wine": load_wine, "breast_cancer": load_breast_cancer}[name]().data
    train, test = train_test_split(X, test_size=0.2, random_state=0)
    steps = [PCA(12, random_state=0)] if name == "digits_pca" else []
    scaler = make_pipeline(*steps, StandardScaler()).fit(train)
    return scaler.transform(train).astype(np.float32), scaler.transform(test).astype(np.float32)


def load_table_flow(name: str, cache: str, folder: str | None) -> ContinuousNormalizingFlow:
    """The flow of a real table, by flow matching."""
    return fitted(
        cache, f"flow {name}", lambda: ContinuousNormalizingFlow(random_state=0).fit(load_table(name, folder)[0])
    )
