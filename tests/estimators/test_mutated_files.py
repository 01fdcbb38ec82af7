"""Damaged and forged model files: each is refused by one error, or loads. Memory stays bounded."""

import collections
import json
import resource
import sys
import warnings

import numpy as np
import pytest
import safetensors.torch
from model_file_mutations import mutations, sign
from small_hypersolvers import ROUGH_FITS
from small_saved import beside, fit_saved, templates_of

from sklearn_hyper import ModelFileError, load

pytestmark = ROUGH_FITS

MODELS = (
    "regressor, weights",
    "regressor, net",
    "classifier, estimator",
    "density, field",
    "regressor, learned coefficients",
    "density, condition",
)
_MOST_BYTES = 256 * 2**20


def outcome(path, name, expected, rows, given):
    """What loading a file comes to: "refused", "equal" or "another" model. Any other exception fails the test."""
    try:
        loaded = load(path, **templates_of(name))
    except ModelFileError as error:
        assert str(path) in str(error) and len(str(error)) < 3000
        return "refused"
    try:
        answer = _answer(loaded, rows, given)
    except Exception:  # a forged model need not make sense, as long as it does no harm
        return "another"
    return "equal" if np.array_equal(answer, expected) else "another"


def _answer(estimator, rows, given):
    return estimator.transform(rows[:5], **given)


def count_outcomes(name, n, seed, path):
    estimator, rows = fit_saved(name)
    given = beside(estimator, 5)
    expected = _answer(estimator, rows, given)
    content = estimator.save(path).read_bytes()
    counts = collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions and devices, which a forged file may state as it likes
        for signed, damaged in mutations(content, n, seed):
            path.write_bytes(damaged)
            found = outcome(path, name, expected, rows, given)
            counts[signed, found] += 1
            assert signed or found != "another", "a damaged file was loaded as another model"
    return counts


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("name", MODELS)
def test_damaged_files_are_refused_or_equal(name, tmp_path):
    before = _peak_bytes()
    counts = count_outcomes(name, 150, 0, tmp_path / "model.safetensors")
    assert counts[False, "refused"] > 60 and counts[True, "refused"] > 30
    assert _peak_bytes() - before < _MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_many_damaged_files_are_refused_or_equal(name, tmp_path, capsys):
    before = _peak_bytes()
    counts = count_outcomes(name, 2400, 1, tmp_path / "model.safetensors")
    with capsys.disabled():
        print(f"\n{name}: {dict(counts)}, {(_peak_bytes() - before) / 2**20:.0f} MiB more at the peak")
    assert sum(counts.values()) == 2400 and counts[False, "refused"] > 1000
    assert _peak_bytes() - before < _MOST_BYTES


# ---------------------------------------------------------------------- files that ask for too much
def _fitted(model):
    return model["models"]["fitted"]


def _steps(model):
    _fitted(model)["n_steps"] = 10**9


def _jobs(model):
    model["params"]["n_jobs"] = 10**6


def _depth(model):
    _fitted(model)["correction"]["net"]["layout"]["fields"]["depth"] = 10**9


def _width(model):
    _fitted(model)["correction"]["net"]["layout"]["fields"]["hidden"] = 10**9


def _state_shape(model):
    _fitted(model)["correction"]["net"]["layout"]["fields"]["state_shape"] = {"tuple": [10**5, 10**5]}


def _matrix_gate(model):
    fields = _fitted(model)["correction"]["net"]["layout"]["fields"]
    fields |= {"n_state": 1000, "n_gate": 10**6, "has_matrix_gate": True, "state_shape": {"tuple": [1000]}}


def _copies(model):
    state = _fitted(model)["neural_ode"]["state"]
    model["learned"]["history_"] = [{"array": name, "dtype": "|u1", "shape": [-1]} for name in state.values()] * 10**5


def _templates(model):
    model["learned"]["history_"] = [{"template": "vector_field"}] * 10**4


def _nesting(model):
    nested = []
    for _ in range(900):
        nested = [nested]
    model["learned"]["history_"] = nested


def _part(described):
    def change(model):
        _fitted(model)["neural_ode"]["parts"]["input_map"] = described

    return change


def _module(name, values, **parts):
    return {"module": name, "values": {"dict": [list(pair) for pair in values.items()]}, "parts": parts}


_IDENTITY = _module("Identity", {})
_CONVOLUTION = {
    "in_channels": 1, "out_channels": 1, "kernel_size": 1, "stride": 1, "padding": 10**6, "dilation": 1, "groups": 1,
    "padding_mode": "zeros", "bias": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        _steps, _jobs, _depth, _width, _state_shape, _matrix_gate, _copies, _templates, _nesting,
        _part(_module("AppendLogDensity", {"n_features": 2, "n_zeros": 10**9}, scaler=_IDENTITY)),
        _part(_module("Conv2d", _CONVOLUTION)),
        _part(_module("Linear", {"in_features": 10**6, "out_features": 10**6, "bias": True})),
        _part(_module("MLPVectorField", {"n_features": 2, "hidden": 2, "depth": 10**9, "t_span": {"tuple": [0, 1]}})),
        _part({"module": "Popen", "values": {"dict": []}, "parts": {}}),
        _part({"template": "os.system"}),
    ],
    ids=lambda change: change.__name__.strip("_"),
)  # fmt: skip
def test_a_forged_file_gets_neither_memory_nor_code(change, tmp_path):
    path, name = tmp_path / "model.safetensors", "regressor, net"
    content = fit_saved(name)[0].save(path).read_bytes()
    size = int.from_bytes(content[:8], "little")
    description = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["sklearn_hyper"])
    del description["sha256"]
    change(description["model"])
    path.write_bytes(sign(description, safetensors.torch.load(content)))
    before = _peak_bytes()
    with pytest.raises(ModelFileError):
        load(path, **templates_of(name))
    assert _peak_bytes() - before < _MOST_BYTES


# ---------------------------------------------------------------------- conditions that no fit has learned
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "time"),
        (0, "integer"),
        (1, {"tuple": [-1]}),
        (1, {"tuple": [2**12, 2**13]}),
        (1, {"tuple": [True]}),
        (2, None),
        (2, {"array": [], "dtype": "O"}),
        (2, {"array": ["a", "a", "b"], "dtype": "<U1"}),
        (2, {"array": ["a", float("nan"), "b"], "dtype": "O"}),
    ],
    ids=["kind", "integer with categories", "negative size", "huge", "bool", "no categories", "none", "twice", "nan"],
)
def test_a_condition_that_no_fit_has_learned_is_refused(place, value, tmp_path):
    def change(model):
        dict(model["learned"]["condition_"]["dict"])["kind"]["tuple"][place] = value

    with pytest.raises(ModelFileError, match=r"description of (the condition 'kind'|condition_) is wrong"):
        _load_changed("regressor, condition", change, tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["t", "not a name", 3])
def test_a_condition_that_no_field_takes_is_refused(name, tmp_path):
    def change(model):
        model["learned"]["condition_"]["dict"][0][0] = name

    with pytest.raises(ModelFileError, match=r"description of (the condition .*|condition_) is wrong"):
        _load_changed("regressor, condition", change, tmp_path / "model.safetensors")


def test_rows_to_compare_have_one_entry_of_the_condition_each(tmp_path):
    def change(model):
        probe = model["models"]["fitted"]["probe"]
        probe["condition"]["rate"] = probe["condition"]["step"]
        probe["x"] = model["models"]["fitted"]["correction"]["net"]["state"]["weights.values"]

    with pytest.raises(ModelFileError, match="rows to compare has a condition of another length"):
        _load_changed("regressor, condition", change, tmp_path / "model.safetensors")


def _load_changed(name, change, path):
    """Load what somebody has made of a file, signed again."""
    content = fit_saved(name)[0].save(path).read_bytes()
    size = int.from_bytes(content[:8], "little")
    description = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["sklearn_hyper"])
    del description["sha256"]
    change(description["model"])
    path.write_bytes(sign(description, safetensors.torch.load(content)))
    return load(path, **templates_of(name))
