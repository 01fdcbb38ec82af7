"""Power cuts, full disks, read-only folders, damaged caches and workers that die: nothing is lost, and the next run works."""

import errno
import os
import pathlib
import random
import resource
import shutil
import signal
import tempfile
import time

import joblib
import numpy as np
import pytest
from joblib import _store_backends
from joblib.externals.loky.process_executor import TerminatedWorkerError
from processes import DiesOnce, fork, in_child
from sklearn.model_selection import GridSearchCV, KFold
from skorch.callbacks import Callback
from small_hypersolvers import ROUGH_FITS, Swirl, make_regressor
from small_saved import NET, X, fit_saved

import sklearn_hyper.modules.onnx_export as onnx_export
from sklearn_hyper import load
from sklearn_hyper.modules import neural_ode
from sklearn_hyper.training import references

pytestmark = [*ROUGH_FITS, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked to be killed")]


def kill(*args, **kwargs):
    """In place of a function: the process is killed as soon as it is called."""
    os.kill(os.getpid(), signal.SIGKILL)


def fit(memory=None, **params):
    return make_regressor(correction=NET, memory=None if memory is None else str(memory), **params).fit(X)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


@pytest.fixture
def saved(tmp_path):
    """A file of an older model, and its content."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = fit_saved("regressor, weights")[0].save(folder / "model.safetensors")
    return path, path.read_bytes()


# ---------------------------------------------------------------------- model files
class HalfWritten:
    """A file that gets half of what is written to it, before the process is killed."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        kill()


def _half_written():
    opened = pathlib.Path.open
    pathlib.Path.open = lambda path, *args: HalfWritten(opened(path, *args))


def _before_flush():
    onnx_export.os.fsync = kill


def _before_rename():
    onnx_export.os.replace = kill


@pytest.mark.parametrize("patch", [_half_written, _before_flush, _before_rename])
def test_a_killed_save_leaves_the_old_file(patch, saved, log):
    path, old = saved
    estimator, rows = fit_saved("regressor, net")

    def save():
        patch()
        estimator.save(path)

    assert in_child(save, log) == -signal.SIGKILL
    assert path.read_bytes() == old
    estimator.save(path)
    np.testing.assert_array_equal(load(path, Swirl()).predict(rows), estimator.predict(rows))


@pytest.mark.slow
def test_saves_killed_at_any_time_leave_a_whole_file(saved, log):
    path, old = saved
    estimators = [fit_saved(name)[0] for name in ("regressor, net", "regressor, weights")]
    whole = {old, *(one.save(path).read_bytes() for one in estimators)}
    rng = random.Random(0)

    def save_on():
        while True:
            for one in estimators:
                one.save(path)

    for _ in range(60):
        pid = fork()
        if pid == 0:
            save_on()
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert path.read_bytes() in whole
        load(path, Swirl())


def test_a_full_disk_is_told_and_the_old_file_stays(saved, monkeypatch):
    path, old = saved

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_export.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"could not be written \(No space left on device\); what was there is as it was"
    ) as told:
        fit_saved("regressor, net")[0].save(path)
    assert told.value.errno == errno.ENOSPC
    assert path.read_bytes() == old and list(path.parent.iterdir()) == [path]


def limit_files(n_bytes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def test_a_file_that_cannot_grow_is_told_and_the_old_file_stays(saved, log):
    path, old = saved
    estimator = fit_saved("regressor, net")[0]

    def save():
        limit_files(1000)
        with pytest.raises(OSError, match=r"could not be written \(File too large\)"):
            estimator.save(path)

    assert in_child(save, log) == 0, log.read_text()
    assert path.read_bytes() == old and list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------- caches
@pytest.fixture
def small_chunks(monkeypatch):
    """Reference solves in three chunks."""
    monkeypatch.setattr(references, "chunk_rows", lambda numel: 16)


@pytest.mark.parametrize("n_solves", [0, 2])
def test_killed_reference_solves_are_solved_again(n_solves, small_chunks, tmp_path, log, solves):
    expected, cache, before = fit().predict(X), tmp_path / "cache", len(solves)
    solve, calls = neural_ode.reference_solution, []

    def solve_or_die(*args, **how):
        calls.append(args)
        return kill() if len(calls) > n_solves else solve(*args, **how)

    def run():
        neural_ode.reference_solution = solve_or_die
        fit(cache)

    assert in_child(run, log) == -signal.SIGKILL
    np.testing.assert_array_equal(fit(cache).predict(X), expected)
    assert len(solves) == 2 * before
    np.testing.assert_array_equal(fit(cache).predict(X), expected)
    assert len(solves) == 2 * before  # from the cache


def test_a_cache_entry_that_was_being_written_is_solved_again(tmp_path, log):
    expected, cache = fit().predict(X), tmp_path / "cache"

    def write_half(content, file, **how):
        file.write(b"\x80\x04" + 1000 * b"x")
        file.flush()
        kill()

    def run():
        _store_backends.numpy_pickle.dump = write_half
        fit(cache)

    assert in_child(run, log) == -signal.SIGKILL
    for _ in range(2):
        np.testing.assert_array_equal(fit(cache).predict(X), expected)


class KillsAt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            kill()


def test_after_a_killed_fit_the_next_one_goes_on_from_its_solves(tmp_path, log, solves):
    expected, cache = fit().predict(X), tmp_path / "cache"
    n_solves = len(solves)
    assert n_solves > 0
    assert in_child(lambda: fit(cache, callbacks=[KillsAt(2)]), log) == -signal.SIGKILL
    np.testing.assert_array_equal(fit(cache).predict(X), expected)
    assert len(solves) == n_solves  # those of the killed fit were served


def entries(cache):
    return sorted(cache.rglob("output.pkl"))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 64
    path.write_bytes(bytes(content))


def _overwrite(path):
    path.write_bytes(b"no pickle")


def _replace(path):
    joblib.dump(3, path)


def _empty(path):
    path.write_bytes(b"")


def _no_metadata(path):
    (path.parent / "metadata.json").write_text("{")


def _no_code(path):
    (path.parent.parent / "func_code.py").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize("damage", [_truncate, _flip, _overwrite, _replace, _empty, _no_metadata, _no_code])
@pytest.mark.filterwarnings("ignore:memory=.* holds a damaged reference solve:UserWarning")
def test_a_damaged_cache_entry_is_solved_again(damage, tmp_path):
    expected, cache = fit().predict(X), tmp_path / "cache"
    fit(cache)
    assert entries(cache)
    for path in entries(cache):
        damage(path)
    for _ in range(2):
        np.testing.assert_array_equal(fit(cache).predict(X), expected)


def test_a_flipped_bit_in_a_cache_is_told_once(tmp_path):
    cache = tmp_path / "cache"
    fit(cache)
    for path in entries(cache):
        _flip(path)
    with pytest.warns(UserWarning, match=r"memory='.*cache' holds a damaged reference solve, which is solved again"):
        fit(cache)
    fit(cache)  # warnings are errors here


class Forgetful:
    """A cache of another make, which gives back nonsense."""

    def cache(self, function, ignore=()):
        return lambda *arguments: (np.zeros(3), "")


def test_another_makes_cache_is_checked_too():
    with pytest.warns(UserWarning, match="holds a damaged reference solve"):
        found = make_regressor(correction=NET, memory=Forgetful()).fit(X)
    np.testing.assert_array_equal(found.predict(X), fit().predict(X))


@pytest.mark.parametrize("is_new", [True, False], ids=["first use of the cache", "later use"])
def test_a_full_disk_costs_the_cache_alone(is_new, tmp_path, log):
    expected, cache = fit().predict(X), tmp_path / "cache"

    def run():
        if is_new:  # joblib has not written down the code of the solve yet
            joblib.memory._FUNCTION_HASHES.clear()
        limit_files(1000)
        told = r"memory='.*cache' cannot be written to.*solved without it" if is_new else "Unable to cache to disk"
        with pytest.warns((UserWarning, _store_backends.CacheWarning), match=told):
            np.testing.assert_array_equal(fit(cache).predict(X), expected)

    assert in_child(run, log) == 0, log.read_text()
    np.testing.assert_array_equal(fit(cache).predict(X), expected)


def test_a_cache_in_no_folder_is_refused_before_any_solve(tmp_path, solves):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"memory='.*cache' is no folder that can be made or written to \(Not a directory\)"
    ):
        fit(tmp_path / "file" / "cache")
    assert solves == []


@pytest.fixture
def public_folder():
    """A folder that everybody may enter."""
    folder = pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def become_somebody():
    """Give up the rights of root, to which no folder is read-only."""
    if os.getuid() == 0:
        os.setuid(65534)


def test_a_read_only_cache_is_read_and_a_new_one_refused(public_folder, log):
    expected, cache = fit().predict(X), public_folder / "cache"
    fit(cache)
    for path in [*cache.rglob("*"), cache, public_folder]:
        path.chmod(0o555)

    def run():
        become_somebody()
        np.testing.assert_array_equal(fit(cache).predict(X), expected)  # served
        with pytest.warns(_store_backends.CacheWarning, match=r"Unable to cache to disk.*Permission denied"):
            fit(cache, rtol=1e-5)
        with pytest.raises(PermissionError, match=r"memory='.*other' is no folder that can be made or written to"):
            fit(public_folder / "other")

    done = in_child(run, log)
    for path in [public_folder, cache, *cache.rglob("*")]:
        path.chmod(0o755)
    assert done == 0, log.read_text()


# ---------------------------------------------------------------------- workers
@pytest.mark.slow
def test_after_a_worker_has_died_the_next_run_works(tmp_path):
    flag = tmp_path / "died"
    deadly = DiesOnce(flag)

    def run(n_jobs):
        return make_regressor(deadly, correction=NET, n_jobs=n_jobs, memory=str(tmp_path / "cache")).fit(X)

    with pytest.raises(TerminatedWorkerError, match="worker process"):
        run(2)
    assert flag.exists()
    found = run(2)
    np.testing.assert_array_equal(found.predict(X), make_regressor(deadly, correction=NET).fit(X).predict(X))


@pytest.mark.slow
def test_after_a_dask_worker_has_died_its_tasks_run_elsewhere(tmp_path, small_chunks):
    """Those of a search, and reference solves of a fit; the next run works, too. No warning: they are errors here."""
    distributed = pytest.importorskip("distributed")

    def search(flag):
        estimator = make_regressor(DiesOnce(tmp_path / flag), correction=NET, memory=str(tmp_path / flag[0]))
        return GridSearchCV(estimator, {"n_steps": [1, 2]}, cv=KFold(2), error_score="raise").fit(X)

    def solve(flag):
        estimator = make_regressor(DiesOnce(tmp_path / flag), correction=NET, memory=str(tmp_path / flag[0]), n_jobs=2)
        return estimator.fit(X)

    scores, expected = search("here").cv_results_["mean_test_score"], solve("here").predict(X)
    with (
        distributed.LocalCluster(processes=True, n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        for _ in range(2):
            np.testing.assert_allclose(search("there").cv_results_["mean_test_score"], scores, rtol=1e-5)
        assert (tmp_path / "there").exists()
        for _ in range(2):
            np.testing.assert_allclose(solve("solves").predict(X), expected, rtol=1e-5)
        assert (tmp_path / "solves").exists()
