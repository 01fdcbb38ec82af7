"""Model files: what is loaded computes the same bits, can be fitted again, and nothing in the file is executed."""

import builtins
import copy
import datetime
import importlib
import json
import pickle
import subprocess
import sys
import threading
import warnings
from dataclasses import asdict, replace

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from model_file_mutations import sign
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EarlyStopping
from small_hypersolvers import ROUGH_FITS, Swirl, make_classifier, make_regressor
from small_saved import (
    NET,
    RECIPES,
    OwnEuler,
    OwnNet,
    X,
    answers,
    assert_same_answers,
    beside,
    by_condition,
    fit_saved,
    templates_of,
)
from torch import nn

import sklearn_hyper.modules.model_file as model_file
from sklearn_hyper import (
    HypersolverClassifier,
    HypersolverRegressor,
    ModelFileError,
    NeuralODE,
    NeuralODERegressor,
    load,
)
from sklearn_hyper.estimators import ConditionError, PersistenceWarning, VersionMismatchWarning
from sklearn_hyper.modules import ConvVectorField

pytestmark = ROUGH_FITS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", RECIPES)
def test_loaded_computes_the_same_bits(name, path):
    estimator, rows = fit_saved(name)
    assert estimator.save(path) == path
    loaded = load(path, **templates_of(name))
    assert type(loaded) is type(estimator)
    assert_same_answers(estimator, loaded, rows)


HYPERSOLVERS = [name for name in RECIPES if name.startswith(("regressor", "classifier", "density"))]


@pytest.mark.parametrize(
    "name", [name for name in HYPERSOLVERS if not any(word in name for word in ("own", "other", "alone"))]
)
def test_loaded_is_fitted_again_to_the_same_bits(name, path):
    estimator, rows = fit_saved(name)
    estimator.save(path)
    loaded = load(path, **templates_of(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.fit(rows, **beside(estimator, len(rows)))
    assert_same_answers(estimator, loaded, rows)


@pytest.mark.parametrize("name", ["regressor, net", "regressor, weights", "regressor, learned coefficients"])
def test_a_loaded_hypersolver_goes_on_training(name, path):
    estimator, rows = fit_saved(name)
    estimator.save(path)
    going_on = []
    for one in (copy.deepcopy(estimator), load(path, **templates_of(name))):
        one.set_params(warm_start=True, lr=1e-3)
        going_on.append(one.fit(rows))
    assert_same_answers(*going_on, rows)


@pytest.mark.parametrize("name", ["regressor, weights", "classifier, estimator", "density, flow"])
def test_reports_records_and_parameters_come_back(name, path):
    estimator, rows = fit_saved(name)
    estimator.save(path)
    loaded = load(path, **templates_of(name))
    reports = [[replace(row, ms=0, speed_up=0) for row in one.solver_report(rows)] for one in (estimator, loaded)]
    np.testing.assert_equal(*([asdict(row) for row in report] for report in reports))
    for name in ("errors_", "delta_", "history_", "n_samples_fit_", "n_features_in_", "classes_", "dtype_", "order_"):
        if hasattr(estimator, name):
            np.testing.assert_equal(getattr(loaded, name), getattr(estimator, name))
    params = estimator.get_params()
    for key, value in loaded.get_params().items():
        if key not in ("neural_ode", "correction"):
            assert value == params[key], key


def test_loaded_is_saved_to_the_same_description(path):
    estimator, _ = fit_saved("regressor, weights")
    first = estimator.save(path).read_bytes()
    assert load(path, Swirl()).save(path).read_bytes() == first


def test_learned_coefficients_and_deltas_are_in_the_file(path):
    estimator, rows = fit_saved("regressor, learned coefficients")
    estimator.save(path)
    loaded = load(path, Swirl())
    assert loaded.base_solver_ == estimator.base_solver_ and loaded.base_solver_.name == "nonstationary"
    assert_same_answers(estimator.without_correction(), loaded.without_correction(), rows)
    with pytest.warns(UserWarning, match="outside the fitted range"):
        halved = [one.with_solver(t_span=(0.0, 0.5)).predict(rows) for one in (loaded, estimator)]
    np.testing.assert_array_equal(*halved)


def test_a_fresh_process_predicts_the_same(path, tmp_path):
    names = ["classifier, estimator", "density, flow", "Neural ODE, classifier"]
    for name in names:
        estimator, rows = fit_saved(name)
        estimator.save(tmp_path / f"{name}.safetensors")
        np.savez(tmp_path / f"{name}.npz", rows=rows, **answers(estimator, rows))
    program = """
import pathlib, numpy as np, torch, sklearn_hyper
torch.set_num_threads(1)
for path in pathlib.Path().glob("*.safetensors"):
    loaded, saved = sklearn_hyper.load(path), np.load(path.with_suffix(".npz"))
    for method in set(saved.files) & {"predict", "predict_proba", "transform", "trajectory", "score_samples"}:
        np.testing.assert_array_equal(getattr(loaded, method)(saved["rows"]), saved[method])
    print("same", end=" ")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == len(names) * "same ", done.stderr


def test_loading_unpickles_imports_and_evaluates_nothing(path, monkeypatch):
    estimator, rows = fit_saved("classifier, estimator")
    estimator.save(path)
    load(path)  # what torch and scikit-learn import late has been imported now

    def forbidden(*args, **kwargs):
        raise AssertionError("executed something")

    for owner, name in [
        (pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (cloudpickle, "loads"), (torch, "load"),
        (builtins, "eval"), (builtins, "exec"), (importlib, "import_module"),
    ]:  # fmt: skip
        monkeypatch.setattr(owner, name, forbidden)
    loaded = load(path)
    monkeypatch.undo()
    assert_same_answers(estimator, loaded, rows)


def test_the_file_is_a_safetensors_file_with_a_description(path):
    make_classifier(correction=NET).fit(X).save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["sklearn_hyper"])
        assert description["format_version"] == 1
        assert description["model"]["estimator"] == "HypersolverClassifier"
        state = description["model"]["models"]["fitted"]["neural_ode"]["state"]
        np.testing.assert_array_equal(file.get_tensor(state["vector_field.weight"]), Swirl().weight.detach())


def test_no_row_of_the_training_data_is_in_the_file(path):
    rows = np.random.default_rng(7).normal(size=(40, 2))
    make_regressor(correction=NET).fit(rows).save(path)
    content = path.read_bytes()
    assert not [row for row in rows if row.tobytes() in content]


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "bcd"]), np.array(["a", "b"], dtype=object), np.array([3, -1], dtype=">i2"), np.array([True, False]),
        np.array([0.5, 2.0]), np.array([1, 2**63], dtype=np.uint64),
    ],
    ids=lambda labels: labels.dtype.str,
)  # fmt: skip
def test_labels_of_any_kind_come_back(labels, path):
    estimator = HypersolverClassifier(Swirl(), classes=labels, n_steps=2, max_epochs=2, random_state=0, correction=NET)
    estimator.fit(X).save(path)
    loaded = load(path, Swirl())
    np.testing.assert_array_equal(loaded.classes_, labels)
    assert loaded.predict(X).dtype.kind == estimator.predict(X).dtype.kind
    np.testing.assert_array_equal(loaded.predict(X), estimator.predict(X))


@pytest.mark.parametrize("labels", [np.array(["2020", "2021"], dtype="datetime64[Y]"), np.array([b"a", b"b"])])
def test_labels_that_no_file_holds_are_refused(labels, path):
    estimator = HypersolverClassifier(Swirl(), classes=labels, n_steps=2, max_epochs=2, random_state=0, correction=NET)
    with pytest.raises(ModelFileError, match=r"classes_ is an array of dtype .*, which a model file cannot hold"):
        estimator.fit(X).save(path)


def test_loading_moves_no_global_generator(path):
    fit_saved("density, flow")[0].save(path)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(path)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


# ---------------------------------------------------------------------- conditions
def test_what_the_fit_has_learned_of_its_condition_comes_back(path):
    for name in ("regressor, condition", "Neural ODE, condition", "classifier, condition", "density, condition"):
        estimator, _ = fit_saved(name)
        estimator.save(path)
        loaded = load(path, **templates_of(name))
        assert loaded.condition_.keys() == estimator.condition_.keys()
        for one, other in zip(loaded.condition_.values(), estimator.condition_.values(), strict=True):
            assert type(one) is type(other) and one[:2] == other[:2]
            np.testing.assert_array_equal(one.categories, other.categories)


def test_a_loaded_estimator_names_what_is_wrong_with_a_condition(path):
    places = {"regressor, condition": "kind", "Neural ODE, condition": "label", "density, condition": "label"}
    for name, kind in places.items():
        estimator, rows = fit_saved(name)
        given = beside(estimator, len(rows))["condition"]
        estimator.save(path)
        loaded = load(path, **templates_of(name))
        call = getattr(loaded, "predict", None) or loaded.score_samples
        for wrong, message in (
            (None, "condition must have"),
            (given | {kind: given[kind][:3]}, r"has 3 entries for 40 rows"),
            (given | {kind: np.full(40, "new")}, r"holds 'new', not among the \d categories"),
        ):
            with pytest.raises(ConditionError, match=message):
                call(rows, condition=wrong)


def test_the_hypersolver_that_a_training_leaves_behind_is_compared_with_its_condition(path):
    estimator, rows = fit_saved("classifier, condition")
    slow = estimator.neural_ode
    slow.save(path)
    given = beside(slow, len(rows))["condition"]
    codes = torch.from_numpy(np.unique(given["label"], return_inverse=True)[1])
    x, of = torch.from_numpy(rows), {"label": codes, "size": torch.from_numpy(given["size"])}
    assert torch.equal(load(path).hypersolver_.solve(x, of), slow.hypersolver_.solve(x, of))


def test_other_code_of_a_conditional_field_is_refused(path):
    estimator, _ = fit_saved("regressor, condition")
    estimator.save(path)
    with pytest.raises(ModelFileError, match="computes other states than when it was saved"):
        load(path, lambda t, z, *, rate, kind, step: by_condition(t, z, rate=rate, kind=1 + kind, step=step))


def test_files_from_before_there_were_conditions_are_of_fits_without_one(path):
    estimator, rows = fit_saved("classifier, estimator")
    content = estimator.save(path).read_bytes()
    description = json.loads(
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["sklearn_hyper"]
    )
    del description["sha256"]
    for part in (description["model"], description["model"]["models"]["source"]):
        del part["learned"]["condition_"]
    path.write_bytes(sign(description, safetensors.torch.load(content)))
    loaded = load(path)
    assert loaded.condition_ == {} and loaded.neural_ode.condition_ == {}
    assert_same_answers(estimator, loaded, rows)


@pytest.mark.parametrize(
    "kinds", [[b"a", b"b"], [pd.Interval(0, 1), pd.Interval(1, 2)], [datetime.date(2000, 1, 1), datetime.date(2001, 1, 1)]],
    ids=["bytes", "intervals", "dates"],
)  # fmt: skip
def test_categories_that_no_file_holds_are_refused(path, kinds):
    condition = {"rate": X, "kind": pd.Categorical(kinds * 20), "step": 0}
    estimator = make_regressor(by_condition, correction=NET).fit(X, condition=condition)
    with pytest.raises(ModelFileError, match=r"(?s)categories of condition\['kind'\] are objects such as .*strings"):
        estimator.save(path)


# ---------------------------------------------------------------------- what users bring
def test_weights_come_from_the_file_and_the_template_stays(path):
    field = Swirl()
    field.weight.data *= 1.1
    estimator = make_regressor(field, correction=NET).fit(X)
    estimator.save(path)
    template = Swirl()
    loaded = load(path, template)
    np.testing.assert_array_equal(loaded.predict(X), estimator.predict(X))
    torch.testing.assert_close(template.weight, Swirl().weight)
    loaded.neural_ode_.vector_field.weight.data.zero_()
    torch.testing.assert_close(template.weight, Swirl().weight)


def test_a_field_of_this_library_may_be_passed_too(path):
    estimator, rows = fit_saved("regressor, images")
    estimator.save(path)
    assert_same_answers(estimator, load(path, ConvVectorField(2, hidden=4)), rows)
    with pytest.raises(ModelFileError, match=r"vector_field.time has shape \(5,\)"):
        load(path, ConvVectorField(2, hidden=5))


class Layered(nn.Module):
    """A field with statistics, a buffer that no state dict has, a hidden module, and an old hook."""

    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        self.norm = nn.BatchNorm1d(2)
        self.hidden = [nn.Linear(2, 2)]
        self.register_buffer("gain", torch.rand(1), persistent=False)

    def forward(self, t, z):
        return self.hidden[0](torch.tanh(self.gain * self.norm(self.layer(z))))


def test_all_tensors_come_from_the_file_in_its_dtype(path):
    torch.manual_seed(1)
    field = Layered().double()
    field.hidden[0].double()
    field.norm.running_mean += 0.3
    estimator = make_regressor(field, correction=NET).fit(X)
    estimator.save(path)
    torch.manual_seed(2)
    assert_same_answers(estimator, load(path, Layered()), X)


def test_searches_and_frozen_estimators_are_taken_apart(path):
    search = GridSearchCV(NeuralODERegressor(max_epochs=1, random_state=0), {"lr": [1e-3, 1e-2]}, cv=2).fit(X, X[:, 0])
    estimator = HypersolverRegressor(FrozenEstimator(search), n_steps=2, max_epochs=2, random_state=0, correction=NET)
    estimator.fit(X).save(path)
    loaded = load(path)
    assert_same_answers(estimator, loaded, X)
    np.testing.assert_array_equal(loaded.neural_ode.predict(X), search.predict(X))


def test_a_whole_neural_ode_brings_its_maps_along(path):
    estimator, rows = fit_saved("regressor, own parts")
    estimator.save(path)
    given = templates_of("regressor, own parts")
    whole = NeuralODE(given.pop("vector_field"), output_map=given.pop("output_map"))
    assert_same_answers(estimator, load(path, whole, **given), rows)


def test_names_labels_and_set_output_come_back(path):
    frame = pd.DataFrame(X, columns=["a", "b"])
    estimator = make_classifier(correction=NET).set_output(transform="pandas").fit(frame)
    estimator.save(path)
    loaded = load(path, **templates_of("classifier, module"))
    pd.testing.assert_frame_equal(loaded.transform(frame), estimator.transform(frame))
    assert loaded.predict(frame).tolist() == estimator.predict(frame).tolist()
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame.rename(columns={"a": "c"}))


def test_steps_of_a_pipeline_are_supplied(path):
    slow = make_pipeline(StandardScaler(), NeuralODERegressor(max_epochs=1, random_state=0)).fit(X, X[:, 0])
    estimator = HypersolverRegressor(slow, n_steps=2, max_epochs=2, random_state=0, correction=NET).fit(X)
    estimator.save(path)
    with pytest.raises(ModelFileError, match=r"fitted steps before the Neural ODE.*pass load\(path, preprocess=...\)"):
        load(path)
    for steps in (slow[:-1], slow[0]):
        loaded = load(path, preprocess=steps)
        assert_same_answers(estimator, loaded, X)
        assert_same_answers(estimator, loaded.fit(X), X)


def test_a_cache_is_never_taken_from_a_file(path, tmp_path):
    make_regressor(correction=NET, memory=str(tmp_path / "cache")).fit(X).save(path)
    assert b"cache" not in path.read_bytes()
    loaded = load(path, Swirl())
    assert loaded.memory is None and loaded.fitted_.settings.memory is None


def test_a_calibration_is_left_out_with_a_warning(path):
    estimator = make_regressor(correction=NET).fit(X)
    estimator.calibration_ = object()
    with pytest.warns(PersistenceWarning, match="calibration is not part of a model file"):
        estimator.save(path)
    assert not hasattr(load(path, Swirl()), "calibration_")


def test_another_version_is_named(path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(model_file, "__version__", "99.0")
        make_regressor(correction=NET).fit(X).save(path)
    with pytest.warns(VersionMismatchWarning, match=r"saved by sklearn_hyper 99\.0 and is loaded by \d"):
        load(path, Swirl())


def test_a_missing_device_is_replaced_by_the_cpu(path):
    estimator = make_regressor(correction=NET).fit(X)
    expected = estimator.predict(X)
    estimator.device = "cuda:7"
    estimator.save(path)
    with pytest.warns(UserWarning, match=r"device='cuda:7' is not available here.*loaded on the CPU instead"):
        loaded = load(path, Swirl())
    np.testing.assert_array_equal(loaded.predict(X), expected)


# ---------------------------------------------------------------------- refusals
def _with(**params):
    return lambda: make_regressor(correction=NET, **params).fit(X)


class Subclass(HypersolverRegressor):
    pass


class OwnNeuralODE(NeuralODE):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_regressor(OwnNeuralODE(Swirl()), correction=NET).fit(X), r"OwnNeuralODE is a class of your own"),
        (_with(callbacks=[EarlyStopping(patience=99)]), r"callbacks=.* is code.*set_params\(callbacks=None\)"),
        (_with(random_state=np.random.RandomState(0)), r"random_state=RandomState.* cannot be described"),
        (lambda: Subclass(Swirl(), n_steps=2, max_epochs=2).fit(X), r"Subclass is a class of your own"),
        (lambda: make_regressor(base_solver="rk4", correction=NET).fit(X).without_correction().with_solver("euler", 5000),
         r"n_steps=5000 makes 5000 evaluations of 0 MiB in all, and a model file may ask for 4096"),
    ],
    ids=["Neural ODE", "callbacks", "random_state", "subclass", "steps"],
)  # fmt: skip
def test_what_cannot_be_described_is_refused_and_writes_nothing(make, message, path):
    with pytest.raises(ModelFileError, match=message):
        make().save(path)
    assert not path.exists()


def test_callbacks_can_be_dropped_after_the_fit(path):
    estimator = _with(callbacks=[EarlyStopping(patience=99)])()
    estimator.set_params(callbacks=None).save(path)
    np.testing.assert_array_equal(load(path, Swirl()).predict(X), estimator.predict(X))


def test_an_unfitted_estimator_is_not_saved(path):
    with pytest.raises(NotFittedError):
        make_regressor().save(path)


def test_a_folder_that_is_not_there_is_named_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="which is no folder"):
        fit_saved("regressor, net")[0].save(tmp_path / "nowhere" / "model.safetensors")


class Stretch(nn.Module):
    """A field with the tensors of a Swirl, that computes something else."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, t, z):
        return z @ self.weight.T


class Wider(Stretch):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"holds a vector_field that is not of this library \(it was a Swirl\): pass load\(path, vector_field=...\)"),
        ({"vector_field": Stretch()}, r"computes other states than when it was saved.*pass the same code"),
        ({"vector_field": Wider()}, r"vector_field.weight has shape \(3, 3\).*saved one shape \(2, 2\)"),
        ({"vector_field": lambda t, z: -z}, r"other tensors than the saved one: it lacks \['vector_field.weight'\]"),
        ({"vector_field": Swirl(), "correction": OwnNet()}, r"correction: passed, and the file needs none"),
        ({"vector_field": Swirl(), "preprocess": StandardScaler()}, r"preprocess: passed, and the file needs none"),
        ({"vector_field": Swirl(), "base_solver": OwnEuler()}, r"base_solver: passed, and the file needs none"),
    ],
    ids=["missing", "other code", "other shape", "no weights", "correction", "preprocess", "base_solver"],
)  # fmt: skip
def test_templates_that_do_not_fit_are_refused(given, message, path):
    fit_saved("regressor, net")[0].save(path)
    with pytest.raises(ModelFileError, match=message):
        load(path, **given)


class Times(nn.Module):
    """A map that no tensor tells from another."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, z):
        return self.factor * z


def test_another_output_map_is_refused(path):
    estimator = make_regressor(NeuralODE(Swirl(), output_map=Times(2.0)), correction=NET).fit(X)
    estimator.save(path)
    assert_same_answers(estimator, load(path, Swirl(), output_map=Times(2.0)), X)
    with pytest.raises(ModelFileError, match=r"computes other outputs than when it was saved.*pass the same code"):
        load(path, Swirl(), output_map=Times(5.0))


class NearZero(nn.Module):
    """A map that is undefined for rows unlike those of the fit."""

    def forward(self, z):
        return torch.log(0.5 - z)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_outputs_that_are_not_finite_are_not_compared(path):
    estimator = make_regressor(NeuralODE(Swirl(), output_map=NearZero()), correction=NET).fit(0.1 * X)
    drawn = np.random.default_rng(0).normal(size=(16, 2))
    assert np.isnan(estimator.predict(drawn)).any()
    estimator.save(path)
    assert_same_answers(estimator, load(path, Swirl(), output_map=NearZero()), 0.1 * X)


def _hook(layer):
    layer.register_forward_hook(lambda module, args, out: 3 * out)


def _other_forward(layer):
    layer.forward = lambda z: 3 * z


@pytest.mark.parametrize("change", [_hook, _other_forward])
def test_a_layer_of_torch_that_was_changed_is_the_users(change, path):
    layer = nn.Linear(2, 2).double()
    change(layer)
    make_regressor(NeuralODE(Swirl(), output_map=layer), correction=NET).fit(X).save(path)
    with pytest.raises(ModelFileError, match=r"holds a output_map that is not of this library \(it was a Linear\)"):
        load(path, Swirl())


def test_another_method_than_the_saved_one_is_refused(path):
    class Other(OwnEuler):
        name = "other"

    fit_saved("regressor, own parts")[0].save(path)
    given = templates_of("regressor, own parts") | {"base_solver": Other()}
    with pytest.raises(ModelFileError, match=r"base_solver='other' of order 1 was passed.*saved one is 'own euler'"):
        load(path, **given)


@pytest.mark.parametrize("content", [b"", b"x", pickle.dumps(3), safetensors.torch.save({"a": torch.ones(1)})])
def test_other_files_are_refused_by_name(content, path):
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"path='.*model.safetensors' cannot be loaded"):
        load(path)


def test_a_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        load(path)


def test_threads_may_save_to_one_file(path):
    estimators = [fit_saved(name)[0] for name in ("regressor, net", "regressor, weights")]
    sizes = [one.save(path).stat().st_size for one in estimators]
    failed = []

    def save(estimator):
        try:
            for _ in range(20):
                estimator.save(path)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(one,)) for one in estimators for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.stat().st_size in sizes
    load(path, Swirl())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
