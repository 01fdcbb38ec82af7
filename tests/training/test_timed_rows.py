"""Rows with times of their own are indexed, split and fetched as tensors are."""

import torch

from sklearn_hyper.training.timed_rows import TimedDataset, TimedRows, rows_and_times

X, TIMES = torch.arange(10.0).reshape(5, 2), torch.arange(15.0).reshape(5, 3).double()
ROWS = TimedRows(X, TIMES)


def test_rows_keep_their_times():
    for index in (slice(1, 3), torch.tensor([4, 0]), [2]):
        assert torch.equal(ROWS[index].x, X[index]) and torch.equal(ROWS[index].times, TIMES[index])
    parts = ROWS.split(2)
    assert [len(part) for part in parts] == [2, 2, 1] and len(ROWS) == 5
    assert torch.equal(torch.cat([part.times for part in parts]), TIMES)


def test_the_module_gets_them_by_name():
    named, y = TimedDataset(ROWS, X[:, 0]).__getitems__([3, 1])
    assert named.keys() == {"x", "times"} and torch.equal(named["times"], TIMES[[3, 1]])
    assert torch.equal(y, X[[3, 1], 0])
    named, y = TimedDataset(X).__getitems__([3])
    assert named.keys() == {"x"} and len(y) == 1


def test_rows_without_times_are_tensors():
    assert rows_and_times(X) == (X, None) and rows_and_times(ROWS) == (X, TIMES)
