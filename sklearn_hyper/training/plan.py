"""Plan a fit: the times that it needs references at, and the steps that it learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..numerics.methods import Method
from .settings import FitSettings

MAX_STEPS = 48
"""Number of steps that a fit learns from."""
_SLACK = 1e-9
_SHARED_STEPS = 10
"""The mesh holds every uniform grid up to this number of steps, whatever is asked for."""
_IRREGULAR_TIMES = 16
_GAP = 0.01
"""With adaptive steps: smallest distance of the mesh's times, about, as a share of the smallest step."""
_GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(frozen=True)
class StepSizes:
    """Step sizes that a fit covers, as shares of the span: all of [low, high], tested at some numbers of steps."""

    low: float
    high: float
    steps: tuple[int, ...]

    @classmethod
    def from_parameters(cls, n_steps: int, fit_n_steps: int | tuple[int, int] | None) -> StepSizes:
        """Translate ``fit_n_steps``: None covers sizes around n_steps, an int one size, a pair the sizes between.

        Around ``n_steps`` means from 2/3 to 3/2 of its step size.
        """
        if fit_n_steps is None:
            return cls(1 / (1.5 * n_steps), min(1.0, 1.5 / n_steps), (n_steps,))
        if isinstance(fit_n_steps, tuple):
            fewest, most = fit_n_steps
            spread = np.geomspace(fewest, most, 5)
            return cls(1 / most, 1 / fewest, tuple(sorted({round(float(k)) for k in spread})))
        return cls(1 / fit_n_steps, 1 / fit_n_steps, (fit_n_steps,))

    @classmethod
    def of(cls, settings: FitSettings) -> StepSizes:
        """Return the step sizes of a fit. With adaptive steps, equal ones are tested at ``n_steps`` alone."""
        sizes = cls.from_parameters(settings.n_steps, settings.fit_n_steps)
        return replace(sizes, steps=(settings.n_steps,)) if settings.is_adaptive else sizes

    def grids(self, method: Method) -> tuple[int, ...]:
        """Return the K of the uniform grids that the mesh of references has to hold.

        A multistep method takes a full step only where its previous nodes are on the mesh. If :func:`mesh_times` does
        not hold all small grids, more grids are added; otherwise full steps would exist only at the sizes of ``steps``.
        """
        if not method.memory or max(self.steps) <= _SHARED_STEPS:
            return self.steps
        between = np.geomspace(1 / self.high, 1 / self.low, 5)
        return tuple(sorted({*self.steps, *(round(float(k)) for k in between)}))


class TrainingStep(NamedTuple):
    """A step to learn from: mesh indices of its ends, and the method that takes it.

    A multistep method takes it as a full step if the mesh holds the previous nodes, otherwise as a start-up step.
    """

    start: int
    end: int
    method: Method

    def past(self, times: Sequence[float]) -> list[int]:
        """Return the mesh indices of the previous nodes that the method remembers, oldest first."""
        if self.method.n_steps is not None:  # this mesh is the method's own: its nodes are those of the solve
            return list(range(max(0, self.start - self.method.memory), self.start))
        return past_nodes(times, self.start, self.end, self.method.memory)


class Run(NamedTuple):
    """A solve of the whole span: a method in K steps."""

    method: Method
    n_steps: int


def mesh_indices(times: Sequence[float], wanted: Sequence[float] | np.ndarray) -> list[int]:
    """Return the mesh indices of these times, up to rounding; an empty list if the mesh lacks one."""
    mesh, wanted = np.asarray(times), np.asarray(wanted)
    nearest = np.abs(mesh[:, None] - wanted).argmin(axis=0)
    off = np.abs(mesh[nearest] - wanted)
    return nearest.tolist() if np.all(off <= _slack(mesh) * abs(mesh[-1] - mesh[0])) else []


def _slack(times: np.ndarray) -> float:
    """Return the share of the span by which rounding may change a time: more for a span far from zero."""
    return float(_SLACK + 16 * np.finfo(float).eps * np.abs(times).max() / abs(times[-1] - times[0]))


def past_nodes(times: Sequence[float], start: int, end: int, n_past: int) -> list[int]:
    """Return the mesh indices of the ``n_past`` nodes before a step, at equal distances and oldest first.

    The list is empty if the mesh lacks one of them. The step is then a start-up step.
    """
    mesh = np.asarray(times)
    return mesh_indices(times, mesh[start] - (mesh[end] - mesh[start]) * np.arange(n_past, 0, -1))


def choose_steps(
    times: Sequence[float], sizes: StepSizes, n_steps: int, rng: np.random.Generator, n_past: int = 0
) -> list[tuple[int, int]]:
    """Choose pairs (i, j) of mesh indices whose distance lies in the fitted range, spread evenly over log eps.

    For a method with ``n_past`` start-up steps, up to a third are start-up steps: the first ``n_past`` of a solve. The
    others are full steps, whose previous nodes lie on the mesh.
    """
    slack = _slack(np.asarray(times))
    mesh = (np.asarray(times) - times[0]) / (times[-1] - times[0])
    i, j = np.triu_indices(len(mesh), k=1)
    share = mesh[j] - mesh[i]
    inside = (share >= sizes.low - slack) & (share <= sizes.high + slack)
    i, j, share = i[inside], j[inside], share[inside]
    if not n_past:
        return _spread_sizes(i, j, share, sizes, n_steps, rng)
    n_before = mesh[i] / share
    startup = (n_before < n_past - 0.5) & (np.abs(n_before - n_before.round()) * share < slack)
    full = np.array(
        [bool(past_nodes(times, a, b, n_past)) for a, b in zip(i.tolist(), j.tolist(), strict=True)], dtype=np.bool_
    )
    n_startup = n_steps // 3
    return [
        pair
        for kind, n in ((startup, n_startup), (full, n_steps - n_startup))
        for pair in _spread_sizes(i[kind], j[kind], share[kind], sizes, n, rng)
    ]


def _spread_sizes(
    i: np.ndarray, j: np.ndarray, share: np.ndarray, sizes: StepSizes, n_steps: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    if len(i) <= n_steps:
        return list(zip(i.tolist(), j.tolist(), strict=True))
    # One step for each slice of log eps. A slice without a step takes the nearest one; the random term varies the
    # choice.
    edges = np.linspace(math.log(sizes.low), math.log(sizes.high), n_steps)
    distance = np.abs(np.log(share)[None, :] - edges[:, None]) + rng.uniform(0, 0.15, (n_steps, len(share)))
    chosen = np.unique(distance.argmin(axis=1))
    # Add steps from the start of the span, which every solve takes.
    first = np.flatnonzero(i == 0)
    chosen = np.union1d(chosen, first[np.linspace(0, len(first) - 1, min(len(first), n_steps // 4 + 1)).astype(int)])
    return [(int(i[k]), int(j[k])) for k in chosen]


def deal_methods(
    pairs: Sequence[tuple[int, int]], family: Sequence[Method], n_steps: int, rng: np.random.Generator
) -> list[TrainingStep]:
    """Assign methods of a family to pairs: each pair gets all of them, or as many as ``n_steps`` in all allow."""
    if len(family) == 1:
        return [TrainingStep(*pair, family[0]) for pair in pairs]
    n_each = min(len(family), max(1, n_steps // len(pairs)))
    # Deal from shuffled copies of the family, so that all methods come equally often, with steps of all sizes.
    n_copies = -(-n_each * len(pairs) // len(family))
    dealt = iter(np.concatenate([rng.permutation(len(family)) for _ in range(n_copies)]))
    return [TrainingStep(*pair, family[next(dealt)]) for pair in pairs for _ in range(n_each)]


@dataclass(frozen=True)
class FitPlan:
    """What a fit does on the span of one task.

    Parameters
    ----------
    times : tuple of float
        The mesh: times that references are needed at.
    steps : list of TrainingStep
        Steps along the mesh to learn residuals from.
    runs : list of Run
        Whole solves to train through and to measure errors on.
    """

    times: tuple[float, ...]
    steps: list[TrainingStep]
    runs: list[Run]


def make_plan(
    family: Sequence[Method],
    t_span: tuple[float, float],
    n_steps: int,
    sizes: StepSizes,
    rng: np.random.Generator,
    *,
    is_adaptive: bool = False,
    t_eval: Sequence[float] | None = None,
) -> FitPlan:
    """Plan the fit of a correction over a family of methods; the first is to predict in ``n_steps`` steps.

    The mesh holds the times ``t_eval``, too, if there are some.
    """
    method = family[0]
    runs = [Run(member, k) for member in family for k in sizes.steps]
    if method.n_steps is not None:  # it was made for one mesh and takes no other steps
        times = method.mesh(t_span, n_steps)
        pairs = list(pairwise(range(len(times))))
    elif is_adaptive:
        times, pairs = scattered_steps(t_span, n_steps, sizes)
    else:
        times = mesh_times(t_span, sizes.grids(method))
        pairs = choose_steps(times, sizes, MAX_STEPS, rng, method.memory)
    if t_eval is not None:
        times, pairs = _with_times(times, pairs, t_eval)
    return FitPlan(times, deal_methods(pairs, family, MAX_STEPS, rng), runs)


def _with_times(
    times: tuple[float, ...], pairs: Sequence[tuple[int, int]], more: Sequence[float]
) -> tuple[tuple[float, ...], list[tuple[int, int]]]:
    """Return a mesh that holds further times, and the pairs of its indices that stand for the same steps.

    dopri5 steps onto every time, so that one which is there up to rounding is not added.
    """
    known, span = list(times), abs(times[-1] - times[0])
    slack = _slack(np.asarray(times)) * span
    for time in more:
        if min(abs(time - other) for other in known) > slack:
            known.append(time)
    merged = tuple(sorted(known, reverse=times[-1] < times[0]))
    place = {time: i for i, time in enumerate(merged)}
    return merged, [(place[times[i]], place[times[j]]) for i, j in pairs]


def scattered_steps(
    t_span: tuple[float, float], n_steps: int, sizes: StepSizes
) -> tuple[tuple[float, ...], list[tuple[int, int]]]:
    """Return a mesh, and steps along it of sizes spread evenly over log eps, which start anywhere in the span.

    Adaptive steps fit no uniform grid, and those of a fine one would be many times. So the mesh holds the ends of these
    steps, and the uniform grid of ``n_steps`` that errors are measured on. It is the same for every random_state. Every
    fourth step starts at the start of the span, which every solve takes.
    """
    lengths = np.geomspace(sizes.low, sizes.high, MAX_STEPS)
    order = np.arange(MAX_STEPS)
    starts = np.where(order % 4, order * _GOLDEN_RATIO % 1, 0.0) * (1 - lengths)
    gap = _GAP * sizes.low

    def snap(share: float) -> float:
        # dopri5 steps onto every time, so that none may lie next to another one.
        node = round(share * n_steps) / n_steps
        return node if abs(share - node) < gap else round(share / gap) * gap

    ends = [(snap(a), snap(a + length)) for a, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    shares = sorted({share for pair in ends for share in pair} | {k / n_steps for k in range(n_steps + 1)})
    place = {share: i for i, share in enumerate(shares)}
    start, end = t_span
    times = tuple(end if share == 1 else start + (end - start) * share for share in shares)
    return times, [(place[a], place[b]) for a, b in ends]


def mesh_times(t_span: tuple[float, float], steps: Sequence[int]) -> tuple[float, ...]:
    """Return the times that a fit needs: every uniform grid of ``steps``, and irregular times between.

    Up to ten steps, the uniform grids are those of all K <= 10: 33 times, the Farey sequence F_10. They are the same
    whatever K and random_state are, so a grid search over ``n_steps`` shares one cached solve. The irregular times make
    the set of step sizes almost continuous: one in each sixteenth of the span, at offsets of the golden ratio.
    """
    ks = range(1, _SHARED_STEPS + 1) if max(steps) <= _SHARED_STEPS else [1, *steps]
    fractions = {Fraction(k, n) for n in ks for k in range(n + 1)}
    cells = np.arange(_IRREGULAR_TIMES)
    jitter = (cells + 0.1 + 0.8 * (cells * _GOLDEN_RATIO % 1)) / _IRREGULAR_TIMES
    start, end = t_span
    shares = sorted({float(share) for share in fractions} | set(jitter.tolist()))
    return tuple(end if share == 1 else start + (end - start) * share for share in shares)
