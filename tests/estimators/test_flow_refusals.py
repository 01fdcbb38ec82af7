"""What flows and their hypersolvers refuse, each before anything is trained or solved."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from torch import nn
from user_fields import decay

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity
from sklearn_hyper.evaluation import DensityDisplay
from sklearn_hyper.modules import VectorFieldError

X = np.random.default_rng(0).normal(size=(40, 2))


class Counting(Callback):
    """Remembers that a training has begun."""

    def __init__(self, trainings):
        self.trainings = trainings

    def on_train_begin(self, net, **kwargs):
        self.trainings.append(net)


class Field(nn.Module):
    """A small field with a layer of choice in it."""

    def __init__(self, layer):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), layer, nn.Tanh(), nn.Linear(4, 2)).double()

    def forward(self, t, z):
        return self.net(z)


@pytest.mark.parametrize("objective", ["flow_matching", "likelihood"])
def test_a_field_that_mixes_rows(objective):
    flow = ContinuousNormalizingFlow(Field(nn.BatchNorm1d(4)), objective=objective, max_epochs=1)
    with pytest.raises(VectorFieldError, match=r"BatchNorm1d \(net.1\).*use LayerNorm"):
        flow.fit(X)
    ContinuousNormalizingFlow(Field(nn.LayerNorm(4)), objective=objective, max_epochs=1, random_state=0).fit(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinetic": 0.1}, "kinetic: only used by objective='likelihood'"),
        ({"jacobian": 0.1, "adjoint": True}, "jacobian and adjoint: only used by"),
        ({"solver": "hypersolved"}, "solver='hypersolved': only used by objective='likelihood'"),
        ({"solver": "hypersolved", "refit_every": 4}, "solver='hypersolved': only used by"),
        ({"kinetic": 0.1, "solver": "hypersolved"}, "kinetic and solver='hypersolved': only used by"),
        ({"objective": "likelihood", "solver": "rk4", "adjoint": True}, "adjoint=True needs solver='dopri5'"),
    ],
)
def test_options_that_would_do_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        ContinuousNormalizingFlow(max_epochs=1, **options).fit(X)


def test_singular_data_in_a_warm_start_too():
    flow = ContinuousNormalizingFlow(max_epochs=1, warm_start=True, random_state=0).fit(X)
    with pytest.raises(ValueError, match="feature 1 constant"):
        flow.fit(X * [1, 0])


def test_a_warm_start_leaves_frozen_parameters_frozen():
    field = Field(nn.Identity())
    field.net[0].requires_grad_(False)
    flow = ContinuousNormalizingFlow(field, max_epochs=2, warm_start=True, random_state=0).fit(X).fit(X)
    torch.testing.assert_close(flow.flow_.vector_field.net[0].weight, field.net[0].weight, rtol=0, atol=0)


@pytest.mark.parametrize("callback", [Checkpoint(dirname="x"), LoadInitState(Checkpoint(dirname="x"))])
def test_checkpoints_of_two_corrections_in_one_file(callback):
    density = HypersolverDensity(decay, n_features=2, callbacks=[callback], max_epochs=1)
    with pytest.raises(ValueError, match=f"{type(callback).__name__}: a HypersolverDensity fits two corrections"):
        density.fit()


@pytest.mark.parametrize(("n_rows", "fraction"), [(1, 0.1), (2, 0.9), (40, 0.99)])
def test_too_few_rows_before_samples_are_trained_for(n_rows, fraction):
    trainings = []
    density = HypersolverDensity(
        decay,
        n_features=2,
        callbacks=[Counting(trainings)],
        max_epochs=1,
        max_samples=200,
        validation_fraction=fraction,
    )
    with pytest.raises(ValueError, match=rf"validation_fraction={fraction} of n_samples={n_rows} leaves no row"):
        density.fit(X[:n_rows])
    assert not trainings


def test_a_density_of_transformed_data_on_the_axes_of_x():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), ContinuousNormalizingFlow(max_epochs=1, random_state=0)).fit(X)
    fast = HypersolverDensity(pipeline, n_steps=1, max_epochs=1, max_samples=20, random_state=0).fit(X)
    with pytest.raises(TypeError, match="density of the transformed data"):
        DensityDisplay.from_estimators({"fast": fast}, X, kind="density")
