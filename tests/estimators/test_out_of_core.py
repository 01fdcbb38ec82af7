"""X larger than memory: rows that stay on the disk, and rows that come in chunks."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_child
from small_hypersolvers import ROUGH_FITS, make_learner, make_regressor, spiral
from small_saved import NET
from torch.utils.data import DataLoader, IterableDataset

from sklearn_hyper import NeuralODE, NeuralODERegressor

pytestmark = ROUGH_FITS

STATUS = Path("/proc/self/status")


def limit_memory(mib):
    """Let this process take so much more memory than it has. Pages of mapped files do not count."""
    (taken,) = (int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, ((taken << 10) + (mib << 20),) * 2)


@pytest.fixture
def on_disk(tmp_path):
    """Rows of 192 MiB."""
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=np.float32, shape=(393_216, 128))
    X.reshape(1024, 384, 128)[:] = np.random.default_rng(0).normal(size=(384, 128))
    X.flush()
    return np.load(tmp_path / "X.npy", mmap_mode="r")


@pytest.mark.skipif(not STATUS.exists(), reason="memory is limited by way of Linux")
def test_fit_and_predict_read_a_file_without_loading_it(on_disk, tmp_path):
    field = NeuralODE(lambda t, z: -z * (1 + z.square()), output_map=lambda z: z[:, :1])

    def run():
        limit_memory(144)
        fast = make_regressor(field, correction=NET, max_samples=200).fit(on_disk)
        assert fast.n_samples_fit_ == 200
        assert fast.without_correction().predict(on_disk).shape == (len(on_disk), 1)

    def load():
        limit_memory(144)
        np.array(on_disk)

    assert in_child(run, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert in_child(load, tmp_path / "log") == 1 and "MemoryError" in (tmp_path / "log").read_text()


class Chunks(IterableDataset):
    """Rows that come a chunk at a time: each from another part of the plane."""

    def __init__(self, *, labelled):
        self.labelled = labelled

    def __iter__(self):
        rng = np.random.default_rng(0)
        for centre in ((1.0, 0.0), (-1.0, -1.0)):
            X = torch.from_numpy(centre + 0.3 * rng.normal(size=(60, 2)))
            yield (X, X.sum(dim=1)) if self.labelled else X


def test_a_correction_goes_on_from_chunk_to_chunk():
    """A warm start adds what it has seen: later chunks make no row a stranger, nor the first chunk worse than the base."""
    fast, n_seen = make_learner(spiral, warm_start=True, max_epochs=5), []
    for chunk in DataLoader(Chunks(labelled=False), batch_size=None):
        fast.fit(chunk)
        n_seen.append(len(fast.fitted_.fitted_rows))
    assert n_seen == [60, 120]
    everything = np.concatenate([chunk.numpy() for chunk in Chunks(labelled=False)])
    assert fast.score(everything) > 0.5 * fast.without_correction().score(everything)


def test_a_neural_ode_is_trained_from_chunk_to_chunk():
    model = NeuralODERegressor(random_state=0)
    for _ in range(10):
        for X, y in DataLoader(Chunks(labelled=True), batch_size=None):
            model.partial_fit(X, y)
    losses = [row["train_loss"] for row in model.history_]
    assert len(losses) == 20 and sum(losses[-2:]) < sum(losses[:2])
