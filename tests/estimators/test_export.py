"""ONNX files of fitted hypersolvers: they give what predict gives, and run without torch."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_hypersolvers import Swirl, make_regressor
from small_saved import X as X_OF_FILES
from small_saved import beside, fit_saved
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODERegressor,
    __version__,
)
from sklearn_hyper.estimators import ConditionError
from sklearn_hyper.modules import HypersolvedODE, MLPVectorField
from sklearn_hyper.modules.onnx_export import PARITY, write_onnx
from sklearn_hyper.numerics import resolve_base_solver


def run_file(path, X, output=0):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"X": X})[output]


def assert_same(found, expected, dtype=torch.float32):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=PARITY[dtype] * np.abs(expected).max())


@pytest.fixture(scope="module")
def digits_file(digits_hyper, tmp_path_factory):
    return digits_hyper.export_onnx(tmp_path_factory.mktemp("files") / "digits.onnx")


class Controlled(nn.Module):
    """f(t, z, x), non-autonomous."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, t, z, x):
        return torch.tanh(self.layer(torch.cat([z, x], dim=1))) * torch.cos(3 * t)


@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
def test_float64_to_rounding(X, tmp_path):
    fast = make_regressor(MLPVectorField(2, hidden=8).double(), base_solver="ab2", n_steps=3).fit(X)
    path = fast.export_onnx(tmp_path / "fast.onnx", X=X.tolist())
    for n_rows in (1, 2, 37):
        # Constants such as a third would show, were they rounded to float32.
        np.testing.assert_allclose(run_file(path, X[:n_rows]), fast.predict(X[:n_rows]), rtol=0, atol=1e-13)


def test_data_controlled_field(X, tmp_path):
    X = X.astype(np.float32)
    fast = make_regressor(NeuralODE(Controlled(), t_span=(1.0, 0.0), data_controlled=True)).fit(X)
    assert_same(run_file(fast.export_onnx(str(tmp_path / "fast.onnx")), X), fast.predict(X))


class OwnCorrection(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, eps, s, z, stages, x=None):
        return torch.tanh(self.layer(torch.cat([z, *stages], dim=1))) * (1 + eps) * s


def test_a_correction_of_ones_own_on_a_mesh_that_is_not_uniform(X, tmp_path):
    module = HypersolvedODE(
        NeuralODE(Swirl()), resolve_base_solver("euler"), OwnCorrection().double(), (0.0, 0.3, 0.6, 1.0)
    ).eval()
    rows, path = torch.from_numpy(X), tmp_path / "module.onnx"
    write_onnx(module, rows, path, outputs=["output"])
    assert_same(run_file(path, X), module(rows).detach().numpy(), torch.float64)


def test_images(digits_file, digits_hyper, digits):
    for X in (digits[0][:1], digits[0]):
        assert_same(run_file(digits_file, X, 1), digits_hyper.predict_proba(X))


def test_a_file_multiplies_first_where_a_correction_has_few_channels(digits_file, digits_hyper):
    narrow = [step for step in digits_hyper.module_.steps if len(step.net.columns)]
    operators = [node.op_type for node in onnx.load(digits_file).graph.node]
    assert operators.count("Col2Im") == len(narrow) == digits_hyper.n_steps


def test_a_classifier_has_its_labels_in_the_file(digits_file, digits_hyper, digits):
    session = onnxruntime.InferenceSession(digits_file)
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    metadata = session.get_modelmeta().custom_metadata_map
    found = np.array(json.loads(metadata["classes"]))[session.run(["logits"], {"X": digits[0]})[0].argmax(axis=1)]
    np.testing.assert_array_equal(found, digits_hyper.predict(digits[0]))
    assert metadata["sklearn_hyper_version"] == __version__


def test_a_file_runs_without_torch_and_without_this_package(digits_file, digits_hyper, digits, tmp_path):
    X = digits[0][:5]
    np.save(tmp_path / "X.npy", X)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'sklearn', 'sklearn_hyper', 'onnx'])); "
        "import numpy, onnxruntime; session = onnxruntime.InferenceSession(sys.argv[1]); "
        "numpy.save('found.npy', session.run(['probabilities'], {'X': numpy.load('X.npy')})[0])"
    )
    subprocess.run([sys.executable, "-c", code, str(digits_file)], cwd=tmp_path, check=True)
    assert_same(np.load(tmp_path / "found.npy"), digits_hyper.predict_proba(X))


def test_a_file_is_valid_and_holds_weights_once_and_no_paths_of_this_machine(digits_file, digits_hyper):
    onnx.checker.check_model(onnx.load(digits_file), full_check=True)
    weights = 4 * sum(tensor.numel() for tensor in digits_hyper.module_.state_dict().values())
    assert digits_file.stat().st_size < weights + 40_000
    assert b".py" not in digits_file.read_bytes()


def test_sampler_of_a_flow(X, tmp_path):
    pipe = make_pipeline(StandardScaler(), ContinuousNormalizingFlow(Swirl(), max_epochs=1, random_state=0)).fit(X)
    fast = HypersolverDensity(pipe, n_steps=2, max_epochs=2, max_samples=100, random_state=0).fit()
    with pytest.raises(ValueError, match=r"StandardScaler\(\).*inverse_transform"):
        fast.export_onnx(tmp_path / "sampler.onnx")
    found = run_file(fast.export_onnx(tmp_path / "sampler.onnx", preprocessed=True), X)
    np.testing.assert_allclose(fast.preprocess_.inverse_transform(found), fast.inverse_transform(X), atol=1e-9)


# ---------------------------------------------------------------------- what cannot be exported


class ThroughNumpy(nn.Module):
    def forward(self, t, z):
        return torch.from_numpy(np.sin(z.numpy()))


class BranchesOnValues(nn.Module):
    def forward(self, t, z):
        return -z if z.sum() > 0 else z


class BranchesOnTime(nn.Module):
    def forward(self, t, z):
        return -z if t < 0.5 else z


@pytest.mark.parametrize(
    "field", [ThroughNumpy(), BranchesOnValues(), BranchesOnTime()], ids=lambda field: type(field).__name__
)
def test_a_field_that_torch_cannot_trace(field, X, tmp_path):
    module = HypersolvedODE(NeuralODE(field), resolve_base_solver("euler"), None, (0.0, 0.5, 1.0)).eval()
    with pytest.raises(ValueError, match=r"cannot be exported.*must not branch on values"):
        write_onnx(module, torch.from_numpy(X), tmp_path / "fast.onnx", outputs=["output"])
    assert list(tmp_path.iterdir()) == []


def test_steps_of_a_pipeline_are_not_left_out_unsaid(vectors, tmp_path):
    pipe = make_pipeline(StandardScaler(), NeuralODERegressor(max_epochs=1, random_state=0)).fit(*vectors)
    fast = HypersolverRegressor(pipe, n_steps=1, max_epochs=1, random_state=0).fit(vectors[0])
    with pytest.raises(ValueError, match=r"StandardScaler\(\).*preprocessed=True"):
        fast.export_onnx(tmp_path / "fast.onnx")
    path = fast.export_onnx(tmp_path / "fast.onnx", preprocessed=True)
    assert fast.predict(vectors[0]).shape == (len(vectors[0]),)  # one target: no axis of columns
    assert_same(run_file(path, fast.preprocess_.transform(vectors[0])), fast.predict(vectors[0]), torch.float64)


def test_a_disagreement_leaves_the_older_file(tmp_path):
    class Drifts(nn.Module):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return x + self.calls

    path = tmp_path / "older.onnx"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match=r"deviates from torch by .* No file was written"):
        write_onnx(Drifts().eval(), torch.ones(2, 1), path, outputs=["output"])
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_the_missing_extra_is_named(name, swirl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "sklearn-hyper\[onnx\]"'):
        swirl.export_onnx(tmp_path / "fast.onnx")


def test_a_path_without_a_folder(swirl, tmp_path):
    with pytest.raises(ValueError, match=r"path=.*which is no folder"):
        swirl.export_onnx(tmp_path / "missing" / "fast.onnx")
    with pytest.raises(ValueError, match=r"path=.*is a folder"):
        swirl.export_onnx(tmp_path)


def test_rows_to_compare_on_are_checked(swirl, tmp_path):
    with pytest.raises(ValueError, match="X has 3 features"):
        swirl.export_onnx(tmp_path / "fast.onnx", X=np.zeros((4, 3)))


# ---------------------------------------------------------------------- conditions
def run_with_condition(path, X, condition, learned, output=0):
    """Run a file on rows and their condition, whose categories are indices in those of the metadata."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    listed = json.loads(session.get_modelmeta().custom_metadata_map["condition"])
    assert [(one["name"], one["kind"], tuple(one["shape"])) for one in listed] == [
        (name, one.kind, one.shape) for name, one in learned.items()
    ]
    codes = {one["name"]: {value: code for code, value in enumerate(one.get("categories", []))} for one in listed}
    feeds = {
        f"condition_{name}": np.array([codes[name][one] for one in value]) if codes[name] else np.asarray(value)
        for name, value in condition.items()
    }
    return session.run(None, {"X": X, **feeds})[output]


@pytest.mark.parametrize("name", ["classifier, condition", "density, condition"])
def test_a_condition_is_an_input_with_an_entry_for_each_row(name, tmp_path):
    fast, rows = fit_saved(name)
    path = fast.export_onnx(tmp_path / "fast.onnx")
    given = beside(fast, 40)["condition"]
    predict = next(
        getattr(fast, one) for one in ("inverse_transform", "predict_proba", "predict") if hasattr(fast, one)
    )
    for first, n_rows in ((0, 1), (1, 2), (0, 37)):
        part = slice(first, first + n_rows)
        few = {name: value[part] for name, value in given.items()}
        found = run_with_condition(path, rows[part], few, fast.condition_, name.startswith("classifier"))
        np.testing.assert_allclose(found, predict(rows[part], condition=few), rtol=0, atol=1e-12)


def roots(t, z, *, rate):
    return -rate.sqrt()[:, None] * z


def test_a_condition_to_compare_on_may_be_given(X, tmp_path):
    rate, times = np.linspace(1, 2, len(X)), [0.5, 1.0]
    fast = make_regressor(roots, base_solver="heun").fit(X, condition={"rate": rate})
    path = fast.export_onnx(tmp_path / "fast.onnx", condition={"rate": [1, 2, 3.0]}, t_eval=times)
    expected = fast.trajectory(X, condition={"rate": rate}, t_eval=times)
    found = run_with_condition(path, X, {"rate": rate}, fast.condition_)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"X": X_OF_FILES}, "condition must have 'rate', 'kind', 'step'.*got None"),
        ({"condition": {"rate": X_OF_FILES[:5], "kind": "a"}}, "condition must have .*got 'kind', 'rate'"),
        (
            {"condition": {"rate": X_OF_FILES, "kind": "z", "step": 0}},
            r"\['kind'\] holds 'z', not among the 3 categories",
        ),
        (
            {"condition": {"rate": X_OF_FILES * np.nan, "kind": "a", "step": 0}},
            r"\['rate'\] holds nan or infinity in 80",
        ),
        (
            {"X": X_OF_FILES, "condition": {"rate": X_OF_FILES[:7], "kind": "a", "step": 0}},
            "has 7 entries for 40 rows of X",
        ),
    ],
    ids=["missing", "other names", "new category", "nan", "length"],
)
def test_a_wrong_condition_to_compare_on_is_named(given, message, tmp_path):
    with pytest.raises(ConditionError, match=message):
        fit_saved("regressor, condition")[0].export_onnx(tmp_path / "fast.onnx", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_condition_that_the_fit_had_not_is_refused(swirl, tmp_path):
    with pytest.raises(ConditionError, match="was fitted without a condition"):
        swirl.export_onnx(tmp_path / "fast.onnx", condition={"rate": 1.0})
