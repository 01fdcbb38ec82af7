"""A fitted hypersolver is a value: it solves, hands out others like it, and leaves as a module or a file."""

import copy
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import LOGISTIC
from small_tasks import fit_settings, rows, turn_task
from torch import nn

import sklearn_hyper
from sklearn_hyper import MLPCorrection, NeuralODE, alpha_family
from sklearn_hyper.hypersolvers import FittedHypersolver, SolveSettings, Task, fit_hypersolver
from sklearn_hyper.modules import FoldedODE, HypersolvedODE
from sklearn_hyper.modules.serialization import pack, unpack
from sklearn_hyper.numerics import ReferenceSolveError, hypersolve, hypersolve_trajectory


@pytest.fixture(scope="module")
def fast():
    """Of Heun's kind, fitted for one to four steps."""
    settings = fit_settings(base_solver=alpha_family(0.95), fit_n_steps=(1, 4), max_epochs=20)
    return fit_hypersolver(turn_task(), settings)


@pytest.fixture(scope="module")
def x():
    return rows(25, seed=3)


def snapshot(fast, x):
    return fast.solve(x), fast.n_steps, fast.method, fast.neural_ode.t_span, fast.correction, fast.module


def assert_unchanged(fast, x, before):
    assert torch.equal(fast.solve(x), before[0])
    assert snapshot(fast, x)[1:4] == before[1:4]
    assert fast.correction is before[4] and fast.module is before[5]


# ---------------------------------------------------------------------- solve
def test_solves_are_those_of_the_library(fast, x):
    f = fast.neural_ode.vector_field
    with torch.no_grad():
        corrected = hypersolve_trajectory(f, x, (0.0, 1.0), 2, fast.method, fast.correction)
        plain = hypersolve(f, x, (0.0, 1.0), 2, fast.method)
    torch.testing.assert_close(fast.trajectory(x), corrected)
    torch.testing.assert_close(fast.solve(x), corrected[-1])
    torch.testing.assert_close(fast.without_correction().solve(x), plain)
    assert not fast.solve(x).requires_grad


def test_predictions_are_outputs():
    ode = NeuralODE(turn_task().neural_ode.vector_field, input_map=lambda x: 2 * x, output_map=lambda z: z[:, :1] + 1)
    fast, x = fit_hypersolver(Task(ode.eval(), rows(40)), fit_settings(max_epochs=3)), rows(9)
    assert torch.equal(fast.predict(x), fast.solve(x)[:, :1] + 1)
    assert torch.equal(fast.trajectory(x)[0], 2 * x) and torch.equal(fast.trajectory(x)[-1], fast.solve(x))
    np.testing.assert_array_equal(fast.map_output(fast.solve(x)), fast.predict(x).numpy())


def test_references_are_dopri5s_at_the_tolerance_of_the_fit_or_another():
    x = torch.linspace(0.1, 0.9, 30, dtype=torch.float64)[:, None]
    fast = fit_hypersolver(
        Task(NeuralODE(LOGISTIC.f, t_span=LOGISTIC.t_span).eval(), x), fit_settings(rtol=1e-4, loss="trajectory")
    )
    exact = LOGISTIC.exact(*LOGISTIC.t_span, x)
    assert 1e-8 < (fast.reference(x) - exact).abs().max() < 1e-3
    assert (fast.reference(x, solving=SolveSettings(rtol=1e-10)) - exact).abs().max() < 1e-8


def test_rows_that_dopri5_cannot_solve_are_named_or_nan():
    fast = fit_hypersolver(Task(NeuralODE(lambda t, z: 0.1 * z**3).eval(), rows(40)), fit_settings())
    x = rows(20)
    x[13] = 3.0
    with pytest.raises(ReferenceSolveError) as raised:
        fast.reference(x)
    assert raised.value.rows == (13,)
    kept = fast.reference(x, keep_lost=True)
    assert kept.isnan().any(dim=1).nonzero()[:, 0].tolist() == [13]


# ---------------------------------------------------------------------- others like it
def test_it_is_not_to_be_changed(fast):
    with pytest.raises(FrozenInstanceError):
        fast.n_steps = 3


def test_another_method_or_number_of_steps_is_another_value(fast, x):
    before = snapshot(fast, x)
    swapped = fast.with_solver("heun", n_steps=4)
    assert (swapped.method.name, swapped.n_steps, swapped.module.n_steps) == ("heun", 4, 4)
    assert swapped.correction is fast.correction and swapped.neural_ode is fast.neural_ode
    assert not torch.equal(swapped.solve(x), fast.solve(x))
    assert_unchanged(fast, x, before)


def test_another_span_is_another_value(fast, x):
    before = snapshot(fast, x)
    halfway = fast.with_solver(n_steps=1, t_span=(0.0, 0.5))
    assert halfway.neural_ode.t_span == (0.0, 0.5) and halfway.module.grid == (0.0, 0.5)
    assert halfway.neural_ode.vector_field is fast.neural_ode.vector_field
    torch.testing.assert_close(halfway.solve(x), fast.with_solver(n_steps=2).trajectory(x)[1])
    assert_unchanged(fast, x, before)


def test_the_base_method_alone_is_another_value(fast, x):
    before = snapshot(fast, x)
    plain = fast.without_correction()
    assert plain.correction is None and not plain.module.has_correction
    assert plain.with_solver("rk4", n_steps=7).method.name == "rk4"  # any will do
    assert_unchanged(fast, x, before)


def test_there_and_back_is_bit_for_bit_the_same(fast, x):
    back = fast.with_solver("heun", n_steps=3).with_solver(alpha_family(0.95), n_steps=2)
    assert torch.equal(back.solve(x), fast.solve(x))


def test_swaps_that_make_no_sense_are_refused(fast):
    with pytest.raises(
        ValueError, match=r"'euler' \(order 1, 1 stages\) cannot take over.*fit another hypersolver with 'euler'"
    ):
        fast.with_solver("euler")
    with pytest.raises(ValueError, match=r"n_steps must be an integer >= 1, got 0"):
        fast.with_solver(n_steps=0)
    with pytest.raises(ValueError, match="t_span"):
        fast.with_solver(t_span=(1.0, 1.0))
    learned = fit_hypersolver(turn_task(), fit_settings(base_solver="nonstationary", n_steps=3))
    with pytest.raises(ValueError, match="made for n_steps=3 alone, got n_steps=4"):
        learned.with_solver(n_steps=4)


def test_swaps_outside_of_what_was_fitted_are_warned_of(fast):
    with pytest.warns(UserWarning, match=r"step size 0\.01 lies outside the fitted range \[0\.25, 1\]"):
        fast.with_solver(n_steps=100)
    family = MLPCorrection(hidden=4, tableaus=[alpha_family(0.3), alpha_family(0.8)])
    of_family = fit_hypersolver(turn_task(), fit_settings(base_solver="midpoint", correction=family))
    with pytest.warns(UserWarning, match=r"base_solver 'alpha\(3\)' lies outside the family"):
        of_family.with_solver(alpha_family(3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_family.with_solver(alpha_family(0.6))
        fast.with_solver(n_steps=4)
        fast.with_solver(n_steps=1)


# ---------------------------------------------------------------------- leaving as a module
def test_the_module_runs_the_weights_it_holds(fast, x):
    before, module = snapshot(fast, x), fast.to_module()
    assert isinstance(module, HypersolvedODE) and not module.training
    with torch.no_grad():
        torch.testing.assert_close(module(x), fast.predict(x))
        assert torch.equal(module.fold()(x), fast.predict(x))
        for parameter in module.parameters():
            parameter.mul_(2.0)
        assert not torch.allclose(module(x), fast.predict(x))
    assert_unchanged(fast, x, before)


def test_a_file_of_onnx_predicts_the_same(fast, x, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = fast.export_onnx(tmp_path / "fast.onnx", x[:4], metadata={"who": "test"})
    session = onnxruntime.InferenceSession(path.read_bytes())
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(output, fast.predict(x).numpy(), rtol=1e-6, atol=1e-7)
    assert session.get_modelmeta().custom_metadata_map["who"] == "test"


# ---------------------------------------------------------------------- leaving as a file
def test_a_saved_one_is_the_same(fast, x, tmp_path):
    path = fast.save(tmp_path / "fast.bin")
    loaded = FittedHypersolver.load(str(path))
    assert path == tmp_path / "fast.bin" and [file.name for file in tmp_path.iterdir()] == ["fast.bin"]
    assert torch.equal(loaded.solve(x), fast.solve(x)) and torch.equal(loaded.reference(x), fast.reference(x))
    assert torch.equal(loaded.with_solver("heun").solve(x), fast.with_solver("heun").solve(x))
    assert (loaded.errors, loaded.delta, loaded.history) == (fast.errors, fast.delta, fast.history)
    assert (loaded.fitted_eps, loaded.n_samples, loaded.method) == (fast.fitted_eps, fast.n_samples, fast.method)
    assert loaded.correction is not fast.correction


def test_a_saved_one_can_be_fitted_further(fast, x, tmp_path):
    loaded = FittedHypersolver.load(fast.save(tmp_path / "fast.bin"))
    again = fit_hypersolver(turn_task(), fast.settings, loaded)
    assert again.history[0]["valid_loss"] < 1 and torch.equal(loaded.solve(x), fast.solve(x))


def test_a_write_that_fails_leaves_the_older_file(fast, x, tmp_path, monkeypatch):
    path = fast.save(tmp_path / "fast.bin")
    older = path.read_bytes()

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        fast.with_solver(n_steps=4).save(path)
    assert path.read_bytes() == older and [file.name for file in tmp_path.iterdir()] == ["fast.bin"]
    assert torch.equal(FittedHypersolver.load(path).solve(x), fast.solve(x))


def test_what_cannot_be_saved_leaves_the_older_file(fast, tmp_path):
    path = fast.save(tmp_path / "fast.bin")
    older = path.read_bytes()
    locked = copy.copy(fast.neural_ode)
    locked.lock = open(path, "rb")  # noqa: SIM115 - an open file cannot be pickled
    task = Task(locked, rows(30))
    try:
        with pytest.raises(TypeError, match="cannot pickle"):
            fit_hypersolver(task, fit_settings(max_epochs=2)).save(path)
    finally:
        locked.lock.close()
    assert path.read_bytes() == older


def test_paths_are_checked(fast, tmp_path):
    with pytest.raises(ValueError, match="which is no folder; pass the name of a file"):
        fast.save(tmp_path / "missing" / "fast.bin")
    (tmp_path / "other.bin").write_bytes(pickle.dumps(3))
    with pytest.raises(ValueError, match=r"other\.bin' holds a int, not a FittedHypersolver"):
        FittedHypersolver.load(tmp_path / "other.bin")


def test_another_process_reads_it(fast, x, tmp_path):
    fast.save(tmp_path / "fast.bin")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import torch; from sklearn_hyper.hypersolvers import FittedHypersolver; torch.set_num_threads(1);"
        "torch.save(FittedHypersolver.load('fast.bin').solve(torch.load('x.pt')), 'z.pt')"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(sklearn_hyper.__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": path}  # the field's class has to be importable there
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "z.pt"), fast.solve(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))], ids=["deep", "pickle"]
)
def test_copies_are_equal_and_stand_alone(fast, x, copied):
    before, other = snapshot(fast, x), copied(fast)
    assert torch.equal(other.solve(x), fast.solve(x)) and isinstance(other.module, FoldedODE)
    with torch.no_grad():
        for parameter in [*other.neural_ode.parameters(), *other.correction.parameters(), *other.module.parameters()]:
            parameter.mul_(2.0)
    assert_unchanged(fast, x, before)


# ---------------------------------------------------------------------- devices
class Anywhere(nn.Module):
    """A field with a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, t, z):
        return torch.sin(z @ self.weight)


def test_moving_takes_all_tensors_along():
    """To "meta", where there are shapes but no numbers: what stayed behind would be seen."""
    task = Task(NeuralODE(Anywhere()).eval().requires_grad_(False), rows(30, dtype=torch.float32))
    fast = fit_hypersolver(task, fit_settings(base_solver="ab2", n_steps=3, max_epochs=2))
    before, fast = fast, fast.to("meta")
    modules = (fast.neural_ode, fast.correction, fast.module, fast.net.module_)
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert fast.settings.device == "meta" and fast.device == torch.device("meta")
    assert (
        before.device == torch.device("cpu") == next(before.module.parameters()).device
    )  # the value it comes from stays
    assert fast.solve(torch.zeros(4, 2, device="meta")).shape == (4, 2)


def test_it_is_loaded_onto_the_cpu_and_may_be_moved_there(fast, x, tmp_path):
    loaded = FittedHypersolver.load(fast.save(tmp_path / "fast.bin"))
    loaded = loaded.to("cpu")
    assert torch.equal(loaded.solve(x), fast.solve(x)) and loaded.settings.device == "cpu"


def test_what_was_fitted_elsewhere_solves_where_it_is_loaded(fast, x):
    """Settings remember the device of the fit; the weights tell where they are."""
    elsewhere = replace(fast, settings=replace(fast.settings, device="cuda:7"))
    loaded = unpack(pack(elsewhere))
    torch.testing.assert_close(loaded.reference(x), fast.reference(x))
    assert loaded.report(x)[-1].nfe == fast.report(x)[-1].nfe


def test_a_warning_of_a_swap_points_at_the_caller(fast):
    with pytest.warns(UserWarning, match="lies outside the fitted range") as caught:
        fast.with_solver(n_steps=50)
    assert caught[0].filename == __file__
