"""Costs of a solve: evaluations of f, multiply-accumulates and milliseconds (paper, sections 4.1 and 6)."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


class CountedField:
    """Wrap a vector field and count its evaluations. The field itself is not changed.

    Parameters
    ----------
    f : callable
        ``f(t, z)`` or ``f(t, z, x)``; a condition is passed as keywords.

    Attributes
    ----------
    n_evaluations : int
        Calls made so far.
    n_rows_evaluated : int
        Rows in all calls together. Where rows leave a batch early, a call evaluates fewer of them.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.numerics import CountedField, hypersolve
    >>> f = CountedField(lambda t, z: -z)
    >>> _ = hypersolve(f, torch.ones(1, 1), (0, 1), 5, "heun")
    >>> f.n_evaluations
    10
    """

    def __init__(self, f: Callable[..., Tensor]):
        self.f = f
        self.n_evaluations = self.n_rows_evaluated = 0

    def __call__(self, *args: Any, **condition: Any) -> Tensor:
        self.n_evaluations += 1
        self.n_rows_evaluated += len(args[1]) if len(args) > 1 else 0
        return self.f(*args, **condition)


def count_nfe(solve: Callable[[Callable[..., Tensor]], Any], f: Callable[..., Tensor]) -> int:
    """Count the evaluations of f that ``solve(f)`` makes.

    Parameters
    ----------
    solve : callable
        Takes a vector field and solves with it.
    f : callable
        The vector field; it is wrapped, not changed.

    Returns
    -------
    int

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.numerics import count_nfe, hypersolve
    >>> count_nfe(lambda f: hypersolve(f, torch.ones(1, 1), (0, 1), 5, "rk4"), lambda t, z: -z)
    20
    """
    counted = CountedField(f)
    solve(counted)
    return counted.n_evaluations


def count_macs(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> float:
    """Count the multiply-accumulates of the matrix products and convolutions in one call.

    Parameters
    ----------
    function : callable
        A module or function; called once, without gradients.
    *args, **kwargs
        Its arguments. Use a batch of one for MACs per sample.

    Returns
    -------
    float
        Half the FLOPs that :class:`torch.utils.flop_counter.FlopCounterMode` counts. nan if the call holds no matrix
        product or convolution. An analytic field of elementwise operations has no MACs, and a 0 would make every ratio
        with it meaningless.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.numerics import count_macs
    >>> count_macs(torch.nn.Linear(3, 5), torch.ones(1, 3))
    15.0
    >>> count_macs(torch.sin, torch.ones(1, 3))
    nan
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _WholeCall()  # type: ignore[assignment]
    with torch.no_grad(), _separate_products(), counter:
        function(*args, **kwargs)
    flops = counter.get_total_flops()
    return flops / 2 if flops else math.nan


@contextmanager
def _separate_products() -> Iterator[None]:
    """Run attention as separate products. In eval mode torch fuses them into one operation, which counts as nothing."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


class _WholeCall:
    """Stand-in for the counter's module tracker, which counts the whole call under one name.

    The tracker's hooks break a field that differentiates a module inside, and they run in all other threads too. Counts
    by module are not needed here.
    """

    parents = ("Global",)

    def __enter__(self) -> _WholeCall:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def relative_overhead(macs_f: float, macs_g: float, n_stages: float) -> float:
    r"""Return the relative overhead of a correction (paper, section 6).

    .. math:: O_r = 1 + \frac{1}{m} \frac{\mathrm{MAC}_g}{\mathrm{MAC}_f}

    with m evaluations of f per step. (The paper writes p; the two differ for methods with more stages than order.)

    Parameters
    ----------
    macs_f, macs_g : float
        MACs of one call of f and of g.
    n_stages : float
        Evaluations of f per step; the mean over the solve if steps differ.

    Returns
    -------
    float
        nan if f has no MACs.

    Examples
    --------
    >>> from sklearn_hyper.numerics import relative_overhead
    >>> relative_overhead(40e6, 20e6, n_stages=1)
    1.5
    """
    if not macs_f > 0:
        return math.nan
    return 1 + macs_g / (n_stages * macs_f)


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int = 7, warmup: int = 2, min_seconds: float = 2e-3
) -> dict[str, float]:
    """Measure the median milliseconds of each call, in turn, so that drift of the machine affects all alike.

    Parameters
    ----------
    calls : mapping of str to callable
        The calls to time, by name.
    repeats : int, default 7
        Number of rounds. Each round times every call once; the median over rounds is returned.
    warmup : int, default 2
        Untimed calls of each before the first round.
    min_seconds : float, default 0.002
        A call shorter than this is repeated within a round until the round lasts about this long.

    Returns
    -------
    dict of str to float

    Examples
    --------
    >>> from sklearn_hyper.numerics import time_interleaved
    >>> sorted(time_interleaved({"a": lambda: sum(range(9)), "b": lambda: None}, repeats=3))
    ['a', 'b']
    """
    loops = {}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    with _no_garbage_collection():
        for name, call in calls.items():
            for _ in range(max(warmup, 1)):
                call()
            loops[name] = max(1, math.ceil(min_seconds / _estimate(call, 20 * min_seconds)))
        for _ in range(repeats):
            for name, call in calls.items():
                rounds[name].append(1e3 * _seconds(call, loops[name]))
    return {name: statistics.median(values) for name, values in rounds.items()}


def _estimate(call: Callable[[], Any], long: float) -> float:
    """Estimate the seconds of a call: the least of three samples if it is short.

    A single slow sample of a short call would make :func:`time_interleaved` repeat it too rarely in a round.
    """
    first = _seconds(call, 1)
    return max(first if first > long else min(first, _seconds(call, 1), _seconds(call, 1)), 1e-9)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off: it runs at regular allocation counts, so it would hit the same call each round."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _seconds(call: Callable[[], Any], loops: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(loops):
        call()
    _synchronize()
    return (time.perf_counter() - start) / loops


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
