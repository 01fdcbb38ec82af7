"""Schedules: what a fit has learned, as numbers that any loop can run."""

import json
import warnings

import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.adapters import export_schedule, from_denoiser, load_schedule
from sklearn_hyper.numerics import hypersolve


def field(t, z):
    return torch.cos(3 * t) * z


@pytest.fixture(scope="module")
def fast():
    x = torch.linspace(0.5, 2, 80)[:, None]
    fast = HypersolverRegressor(field, base_solver="nonstationary", n_steps=4, max_epochs=20, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a correction gains beside the coefficients is no matter here
        return fast.fit(x)


def run(schedule, f, z):
    """The loop of the docs, in plain Python."""
    times, slopes = schedule["times"], []
    for k, row in enumerate(schedule["weights"]):
        slopes.append(f(torch.tensor(times[k]), z))
        z = z + (times[k + 1] - times[k]) * sum(w * slope for w, slope in zip(row, slopes, strict=True))
    return z


def test_the_loop_is_the_solver_without_its_correction(fast):
    x = torch.linspace(0.6, 1.9, 9)[:, None]
    found = run(export_schedule(fast), field, x)
    torch.testing.assert_close(found, fast.fitted_.without_correction().solve(x), rtol=1e-5, atol=1e-5)


def test_a_file_goes_there_and_back(fast, tmp_path):
    schedule = export_schedule(fast, tmp_path / "schedule.json")
    assert json.loads((tmp_path / "schedule.json").read_text()) == schedule
    assert sum(map(len, schedule["weights"])) == 10 and schedule["n_evaluations"] == 4
    method, x = load_schedule(tmp_path / "schedule.json"), torch.ones(3, 1)
    torch.testing.assert_close(
        hypersolve(field, x, (0.0, 1.0), 4, method), run(schedule, field, x), rtol=1e-5, atol=1e-5
    )


def test_denoisers_get_their_own_times():
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    ode = from_denoiser(Denoiser(), "v", schedule=alphas)
    fast = HypersolverRegressor(ode, base_solver="nonstationary", n_steps=3, max_epochs=3, random_state=0)
    times = export_schedule(fast.fit(torch.randn(60, 2)))["model_times"]
    assert times[0] == pytest.approx(999, abs=0.1)
    assert times == sorted(times, reverse=True) and len(times) == 3


class Denoiser(nn.Module):
    """A model of v, with some weights."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x, timestep):
        return self.net(x)


def test_what_has_no_schedule_is_refused(fast):
    euler = HypersolverRegressor(field, base_solver="euler", n_steps=2, max_epochs=2, random_state=0)
    with pytest.raises(ValueError, match="fast runs base_solver='euler', whose coefficients are not learned"):
        export_schedule(euler.fit(torch.ones(30, 1) + torch.rand(30, 1)))
    with pytest.raises(TypeError, match="fast must be a fitted hypersolver"):
        export_schedule(HypersolverRegressor(field))
    with pytest.raises(ValueError, match="source must be a schedule"):
        load_schedule({"times": [0, 1]})
    kind = {"format": "sklearn_hyper.schedule/1"}
    for wrong in (
        {},
        {"times": [0, 1]},
        {"times": [0, 1], "weights": [[1.0], [0.5, 0.5]]},
        {"times": [], "weights": []},
    ):
        with pytest.raises(ValueError, match="source must hold lists of times and weights"):
            load_schedule(kind | wrong)
    with pytest.raises(ValueError, match="times from 2 to 2, whose ends must differ"):
        load_schedule(kind | {"times": [2, 2], "weights": [[1.0]]})
