"""Damaged and forged model files: each is refused by one error, or loads. Memory stays bounded."""

import collections
import resource
import sys
import warnings

import numpy as np
import pytest
from model_file_mutations import mutations
from small_hypersolvers import ROUGH_FITS
from small_saved import fit_saved, templates_of

from sklearn_hyper import ModelFileError, load

pytestmark = ROUGH_FITS

MODELS = (
    "regressor, weights",
    "regressor, net",
    "classifier, estimator",
    "density, field",
    "regressor, learned coefficients",
)
_MOST_BYTES = 256 * 2**20


def outcome(path, name, expected, rows):
    """What loading a file comes to: "refused", "equal" or "another" model. Any other exception fails the test."""
    try:
        loaded = load(path, **templates_of(name))
    except ModelFileError as error:
        assert str(path) in str(error) and len(str(error)) < 3000
        return "refused"
    try:
        answer = _answer(loaded, rows)
    except Exception:  # a forged model need not make sense, as long as it does no harm
        return "another"
    return "equal" if np.array_equal(answer, expected) else "another"


def _answer(estimator, rows):
    return estimator.transform(rows[:5])


def count_outcomes(name, n, seed, path):
    estimator, rows = fit_saved(name)
    expected = _answer(estimator, rows)
    content = estimator.save(path).read_bytes()
    counts = collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions and devices, which a forged file may state as it likes
        for signed, damaged in mutations(content, n, seed):
            path.write_bytes(damaged)
            found = outcome(path, name, expected, rows)
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
