"""Rows to fit on beside the given ones: from the range of the inputs, between rows, or where errors are largest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..numerics.reference import ReferenceSolveError
from ..numerics.row_errors import RowsError, list_rows
from ..numerics.tensors import per_row, row_norms
from ..numerics.units import state_units
from .errors import References, UnrolledSolves
from .losses import terminal_loss
from .plan import Run
from .references import solve_references
from .settings import FitSettings
from .tasks import Task

_EXTRA_SHARE, _BETWEEN_SHARE = 1.0, 0.25
"""Extra rows, as a share of those that are trained on: in general, and of those between rows."""
_FRINGE = 0.1
"""How far the box reaches beyond the rows on each side, as a share of their range."""
_JITTER = 0.3
"""Standard deviation of what is added to rows, as a share of that of their features."""
_BEYOND = 0.25
"""How far beyond a pair of rows those on the line through them may lie, as a share of their distance."""
_CANDIDATES = 2
"""Of so many rows drawn, "worst" keeps one. Of more, it keeps those of corners alone."""


class ExtraRows(NamedTuple):
    """Rows to fit on beside the given ones, and their states at both ends of the span."""

    task: Task
    ends: Tensor


def draw_extra_rows(task: Task, runs: Sequence[Run], settings: FitSettings, rng: np.random.Generator) -> ExtraRows:
    """Draw rows to fit on beside those of a task, by ``settings.extra_rows``.

    Rows that dopri5 cannot solve, or from which a base solver errs by more than the size of states, are left out:
    training through such solves diverges, and nothing says that these rows matter.

    Parameters
    ----------
    task : Task
        The rows that are trained on: nothing is taken from those that are held out.
    runs : sequence of Run
        Solves that the training takes. The mean of their errors counts for "worst".
    settings : FitSettings
    rng : numpy Generator
    """
    how = settings.extra_rows
    if task.condition and how != "between":
        raise ValueError(
            f"extra_rows={how!r} with a condition: nothing says which condition a drawn row has. Pass 'between', whose "
            "rows have that of the nearer row of their pair, or append rows and their conditions to those of the fit, "
            "with extra_rows=None."
        )
    n_rows = max(1, round(extra_share(how) * len(task)))
    if how == "between":
        x, nearer = draw_between(task.x, n_rows, rng)
        extra = replace(task.rows(nearer), x=x)
    else:
        extra = Task(task.neural_ode, _drawn(how, task.x, n_rows, rng).to(task.x))
    ends = _solved(extra, settings)
    errors = torch.stack([_errors(extra, ends, run, settings) for run in runs])
    # With several numbers of steps, the fewest are long ones for the rows of X as well.
    kept = (errors.isfinite().all(dim=0) & (errors.amin(dim=0) <= 1)).nonzero()[:, 0]
    if not len(kept) and how != "between":  # nobody asks for those by name: they are a default, and may be none
        raise ValueError(
            f"extra_rows={how!r}: from none of the {len(extra)} rows drawn do dopri5 and the base solver end less than "
            "the size of a state apart. Draw rows nearer to X, raise n_steps, or fit with extra_rows=None."
        )
    if how == "worst":
        kept = kept[errors[:, kept].mean(dim=0).argsort(descending=True)[:n_rows]].sort().values
    return ExtraRows(extra.rows(kept), ends[:, kept])


def extra_share(how: Any) -> float:
    """Return how many rows are added, as a share of those that are trained on."""
    return _BETWEEN_SHARE if isinstance(how, str) and how == "between" else _EXTRA_SHARE


@contextmanager
def named_extra_rows(how: Any, n_given: int) -> Iterator[None]:
    """Say of an error about rows that it is one about drawn rows, where it is: those are not rows of X."""
    try:
        yield
    except RowsError as error:
        if not any(row >= n_given for row in error.rows):
            raise
        raise ValueError(
            f"extra_rows={how!r}: {error.what}, from rows that were drawn. Draw rows nearer to X, or fit with "
            "extra_rows=None."
        ) from error


def _drawn(how: Any, x: Tensor, n_rows: int, rng: np.random.Generator) -> Tensor:
    if callable(how):
        return _called(how, x, n_rows, rng)
    if how == "box":
        if x.ndim != 2:
            raise ValueError(
                f"extra_rows='box' draws every feature alone, and X has rows of shape {tuple(x.shape[1:])}, whose "
                "numbers mean something together; pass 'worst', which moves rows of X, a function, or None."
            )
        return draw_from_box(x, n_rows, rng)
    if how == "worst":
        draw = draw_from_box if x.ndim == 2 else draw_nearby
        return draw(x, _CANDIDATES * n_rows, rng)
    raise ValueError(
        f"extra_rows must be None, 'box', 'worst', 'between' or a function (X, n, random_state) -> rows, got {how!r}."
    )


def draw_from_box(x: Tensor, n_rows: int, rng: np.random.Generator) -> Tensor:
    """Draw rows from the box around some, which reaches a tenth of their range beyond them on each side."""
    low, high = x.amin(dim=0), x.amax(dim=0)
    share = torch.from_numpy(rng.uniform(-_FRINGE, 1 + _FRINGE, (n_rows, *x.shape[1:]))).to(x)
    return low + share * (high - low)


def draw_nearby(x: Tensor, n_rows: int, rng: np.random.Generator) -> Tensor:
    """Draw some of the rows, each moved at random by a share of its features' standard deviations."""
    chosen = torch.from_numpy(rng.integers(len(x), size=n_rows))
    noise = torch.from_numpy(rng.normal(size=(n_rows, *x.shape[1:]))).to(x)
    return x[chosen] + _JITTER * x.std(dim=0, correction=0) * noise


def draw_between(x: Tensor, n_rows: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw rows from the lines through pairs of rows, which reach beyond the pair by a quarter of its distance.

    Also return which row of the pair is the nearer one.
    """
    first, second = torch.from_numpy(rng.integers(len(x), size=(2, n_rows)))
    share = torch.from_numpy(rng.uniform(-_BEYOND, 1 + _BEYOND, n_rows))
    rows = torch.lerp(x[first], x[second], per_row(share.to(x), x))
    return rows, torch.where(share < 0.5, first, second)


def _called(draw: Callable[..., Any], x: Tensor, n_rows: int, rng: np.random.Generator) -> Tensor:
    """Return the rows that a user's function draws, checked."""
    given = x.detach().cpu().numpy().copy()
    drawn = draw(given, n_rows, np.random.RandomState(int(rng.integers(2**31 - 1))))
    rows = drawn.detach().cpu().numpy() if isinstance(drawn, Tensor) else np.asarray(drawn)
    expected = f"an array of numbers of shape (n, {', '.join(map(str, given.shape[1:]))}), for X of {given.shape}"
    if rows.dtype.kind not in "fiu" or rows.ndim != given.ndim or rows.shape[1:] != given.shape[1:] or not len(rows):
        raise ValueError(
            f"extra_rows={draw!r} must return {expected}, n={n_rows} and a RandomState, got shape {rows.shape} of "
            f"{rows.dtype}."
        )
    rows = rows.astype(given.dtype)
    lost = (~np.isfinite(rows.reshape(len(rows), -1))).any(axis=1).nonzero()[0].tolist()
    if lost:
        raise ValueError(
            f"extra_rows={draw!r} returned {len(lost)} of {len(rows)} rows that are not finite in {given.dtype} "
            f"({list_rows(lost)}); leave them out."
        )
    return torch.from_numpy(rows)


def _solved(task: Task, settings: FitSettings) -> Tensor:
    """Return dopri5's states at both ends of the span; nan where it cannot solve."""
    span = task.neural_ode.t_span
    try:
        return solve_references(task, span, settings, keep_lost=True)
    except ReferenceSolveError:  # of no row at all
        with torch.no_grad():
            z = task.neural_ode.input_map(task.x.to(settings.device)).cpu()
        return torch.stack([z, torch.full_like(z, torch.nan)])


def _errors(task: Task, ends: Tensor, run: Run, settings: FitSettings) -> Tensor:
    """Return the base solver's terminal error by row, as a share of the states' size; nan where dopri5 has failed.

    The size is that of the row's own end or of the mean one, whichever is larger.
    """
    on_device, states = task.to(settings.device), ends.to(settings.device)
    unit = state_units(states[0])
    references = References(on_device, task.neural_ode.t_span, states, unit)
    solves, found = UnrolledSolves(task.neural_ode, terminal_loss), []
    with torch.no_grad():
        for start in range(0, len(task), settings.batch_size * 8):
            rows = slice(start, start + settings.batch_size * 8)
            solved, reference = solves.solve(references, rows, run, None)
            found.append(row_norms((solved[-1] - reference[-1]) / references.unit))
    sizes = row_norms(states[1] / unit)
    return (torch.cat(found) / sizes.clamp(min=float(sizes.nanmean()))).cpu()
