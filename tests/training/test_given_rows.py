"""Rows with a condition and times of their own are indexed, split, moved and fetched as tensors are."""

import numpy as np
import torch

from sklearn_hyper.training.given_rows import GivenRows, apart, given, named, times_of
from sklearn_hyper.training.nets import NamedRows

X, TIMES = torch.arange(10.0).reshape(5, 2), torch.arange(15.0).reshape(5, 3).double()
LABEL, RATE = torch.tensor([4, 3, 2, 1, 0]), torch.arange(5.0)
ROWS = GivenRows(X, {"label": LABEL, "rate": RATE}, TIMES)


def test_rows_keep_what_goes_beside_them():
    for index in (slice(1, 3), torch.tensor([4, 0]), [2]):
        part = ROWS[index]
        assert torch.equal(part.x, X[index]) and torch.equal(part.times, TIMES[index])
        assert torch.equal(part.condition["label"], LABEL[index]) and torch.equal(part.condition["rate"], RATE[index])
    parts = ROWS.split(2)
    assert [len(part) for part in parts] == [2, 2, 1] and len(ROWS) == 5
    assert torch.equal(torch.cat([part.times for part in parts]), TIMES)


def test_floats_get_a_dtype_and_times_and_labels_keep_theirs():
    arrays = GivenRows(X.numpy(), {"label": LABEL.numpy(), "rate": RATE.numpy()}, TIMES.numpy())
    for rows in (ROWS, arrays):
        moved = rows.to("cpu", torch.float16)
        assert (moved.dtype, moved.condition["rate"].dtype) == (torch.float16, torch.float16)
        assert (moved.condition["label"].dtype, moved.times.dtype) == (torch.int64, torch.float64)
        np.testing.assert_array_equal(moved.times, TIMES)


def test_the_module_gets_them_by_name():
    batch, y = NamedRows(ROWS, X[:, 0]).__getitems__([3, 1])
    assert batch.keys() == {"x", "condition", "times"} and torch.equal(batch["times"], TIMES[[3, 1]])
    assert torch.equal(batch["condition"]["label"], LABEL[[3, 1]]) and torch.equal(y, X[[3, 1], 0])
    again, _ = NamedRows(batch).__getitems__([1])  # as a callback that scores batches passes it on
    assert torch.equal(again["times"], TIMES[[1]]) and torch.equal(again["condition"]["rate"], RATE[[1]])
    assert named(given(X, {}, TIMES)).keys() == {"x", "times"}


def test_rows_alone_stay_a_tensor():
    batch, y = NamedRows(X).__getitems__([3])
    assert torch.equal(batch, X[[3]]) and len(y) == 1


def test_rows_with_nothing_beside_them_are_tensors():
    assert given(X, {}) is X and apart(X) == (X, {}) and times_of(X) is None
    assert apart(ROWS) == (X, {"label": LABEL, "rate": RATE}) and times_of(ROWS) is TIMES
