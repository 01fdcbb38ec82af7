"""A record of dopri5's reference solves: what fits and scores cost, and that refusals come before any."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from sklearn_hyper.modules import neural_ode

REFERENCE_SOLUTION = "sklearn_hyper.modules.neural_ode.reference_solution"
"""The one place from which references are solved: what to patch."""


class ReferenceSolve(NamedTuple):
    n_rows: int
    n_times: int
    dtype: torch.dtype


@contextmanager
def recorded_solves() -> Iterator[list[ReferenceSolve]]:
    """Every reference solve inside the block, also where it fails."""
    made: list[ReferenceSolve] = []
    solve = neural_ode.reference_solution

    def recorded(f: Any, z0: torch.Tensor, times: Any, **how: Any) -> torch.Tensor:
        made.append(ReferenceSolve(len(z0), len(times), z0.dtype))
        return solve(f, z0, times, **how)

    neural_ode.reference_solution = recorded
    try:
        yield made
    finally:
        neural_ode.reference_solution = solve
