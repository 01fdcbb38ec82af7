"""The batching of the example service: requests that wait are one batch, and each gets its own rows back."""

import asyncio
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest

SERVICE = Path(__file__).parents[1] / "examples" / "serving" / "service.py"
pytestmark = pytest.mark.skipif(not SERVICE.exists(), reason="the examples are not part of an installation")


class Doubling:
    """A model that notes the sizes of its batches, holds the first until ``go`` is set, and refuses rows of -1."""

    def __init__(self):
        self.sizes, self.started, self.go = [], threading.Event(), threading.Event()

    def __call__(self, rows):
        self.sizes.append(len(rows))
        self.started.set()
        assert self.go.wait(timeout=30)
        if (rows == -1).any():
            raise ArithmeticError("refused")
        return 2 * rows


def rows_of(value, n):
    return np.full((n, 1), value, np.float32)


async def ask(model, waiting, later, cancelled):
    """Ask with one row, with others while it runs, and with one more when all have their answers."""
    batcher = runpy.run_path(str(SERVICE))["Batcher"](model)
    tasks = [asyncio.create_task(batcher(rows_of(1, 1)))]
    await asyncio.to_thread(model.started.wait, 30)
    tasks += [asyncio.create_task(batcher(rows_of(value, n))) for value, n in waiting]
    await asyncio.sleep(0)  # they have asked, and wait
    if cancelled is not None:
        tasks[cancelled].cancel()
    model.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    return [*answers, await asyncio.wait_for(batcher(rows_of(*later)), 30)]


def answers_and_sizes(waiting, cancelled=None):
    model = Doubling()
    return asyncio.run(ask(model, waiting, (9, 2), cancelled)), model.sizes


def assert_doubled(answer, value, n):
    np.testing.assert_array_equal(answer, rows_of(2 * value, n))


def test_requests_that_wait_are_one_batch_and_get_their_own_rows():
    answers, sizes = answers_and_sizes([(2, 3), (3, 1), (4, 2)])
    assert sizes == [1, 6, 2]
    for answer, given in zip(answers, [(1, 1), (2, 3), (3, 1), (4, 2), (9, 2)], strict=True):
        assert_doubled(answer, *given)


def test_an_error_is_told_to_all_of_its_batch_and_to_nobody_else():
    answers, sizes = answers_and_sizes([(2, 3), (-1, 1), (4, 2)])
    assert sizes == [1, 6, 2]
    assert_doubled(answers[0], 1, 1)
    assert [type(answer) for answer in answers[1:4]] == [ArithmeticError] * 3
    assert_doubled(answers[4], 9, 2)


@pytest.mark.parametrize("cancelled", [0, 1, 2], ids=["running", "next", "waiting"])
def test_a_client_that_goes_away_stops_no_other(cancelled):
    answers, _ = answers_and_sizes([(2, 3), (3, 1), (4, 2)], cancelled)
    for k, given in enumerate([(1, 1), (2, 3), (3, 1), (4, 2), (9, 2)]):
        if k != cancelled:
            assert_doubled(answers[k], *given)
    assert isinstance(answers[cancelled], asyncio.CancelledError)
