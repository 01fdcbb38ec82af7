"""What all trials measure: errors on every part of the rows, evaluations of f and multiply-accumulates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from _results import finite
from _solving import count_calls
from torch import Tensor, nn

from sklearn_hyper.numerics import count_macs

from .loading import LoadedProblem
from .runs import PARTS, Errors, Row, Run


@dataclass
class Measured:
    """What measuring a contender gives; ``Outcome`` has the names."""

    rows: list[Row]
    facts: dict[str, Any] = field(default_factory=dict)
    base: Row | None = None


class Stopwatch:
    """CPU and other seconds of what happens inside."""

    def __enter__(self) -> Stopwatch:
        self._start, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self._seconds, self._cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu

    def facts(self) -> dict[str, float]:
        """As facts of a fit."""
        return {"fit_cpu_seconds": self._cpu_seconds, "fit_seconds": self._seconds}


def measure(
    loaded: LoadedProblem,
    run: Run,
    solve: Callable[[Tensor], Tensor],
    fields: Sequence[nn.Module] | None = None,
) -> Row:
    """Errors on all parts of the rows, evaluations of f and MACs of a solve from rows to terminal states.

    ``fields`` are what the solve evaluates, where those are copies of the problem's.
    """
    ode = loaded.neural_ode
    with torch.no_grad():
        found = {part: solve(loaded.rows[part]) for part in PARTS}
        one = loaded.rows["test"][:1]
        nfe = count_calls(ode.vector_field if fields is None else fields, lambda: solve(one))
        macs = count_macs(solve, one) - np.nan_to_num(count_macs(ode.input_map, one))
    return make_row(loaded, run, nfe, macs, found)


def make_row(loaded: LoadedProblem, run: Run, nfe: float, macs: float, found: dict[str, Tensor]) -> Row:
    """A row from terminal states by part, with how often a classifier's label is dopri5's."""
    values: dict[str, Any] = {"nfe": nfe, "macs": macs}
    for part, states in found.items():
        error = relative_errors(loaded.states(part), states).numpy()
        values[part] = {"median": np.median(error), "p99": np.quantile(error, 0.99), "max": error.max()}
    if loaded.labels is not None:
        head = loaded.neural_ode.output_map
        with torch.no_grad():
            own, expected = (head(z.float()).argmax(1) for z in (found["test"], loaded.states("test")))
        values["agreement"] = float((own == expected).double().mean())
        values["accuracy"] = float(np.mean(own.numpy() == loaded.labels))
    values = finite(values)
    return Row(run, **{key: Errors(**value) if key in PARTS else value for key, value in values.items()})


def relative_errors(exact: Tensor, found: Tensor) -> Tensor:
    """Relative error of every row, in float64; inf where it is not a number."""
    difference = (found.double() - exact.double()).flatten(1).norm(dim=1) / exact.double().flatten(1).norm(dim=1)
    return difference.nan_to_num(nan=math.inf)


def validation_error(model: Callable[[Tensor], Tensor], loaded: LoadedProblem) -> float:
    """Median relative error on the validation rows; inf where it is not finite."""
    with torch.no_grad():
        error = relative_errors(loaded.states("valid"), model(loaded.rows["valid"])).median()
    return float(error) if torch.isfinite(error) else math.inf
