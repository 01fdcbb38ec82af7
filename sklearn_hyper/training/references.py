"""Reference solutions for a whole data set: chunked, parallel, cached, with a progress bar."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import joblib
import numpy as np
import torch
from joblib import Memory, Parallel, delayed
from sklearn.utils.validation import check_memory
from torch import Tensor
from tqdm.auto import tqdm

from ..modules.neural_ode import NeuralODE
from ..modules.serialization import pack, unpack
from ..numerics.reference import reference_solution

_CHUNK_ELEMENTS = 2**17


def chunk_rows(state_numel: int) -> int:
    """Rows a solve: a function of the state's size alone, so that a result does not depend on n_jobs or batch_size."""
    return min(8192, max(32, _CHUNK_ELEMENTS // state_numel))


SHARED_STEPS = 10
"""Up to here the mesh holds every uniform grid, whatever is asked for."""
_IRREGULAR_TIMES = 16
_GOLDEN_RATIO = (1 + 5**0.5) / 2


def mesh_times(t_span: tuple[float, float], steps: Sequence[int]) -> tuple[float, ...]:
    """Times a fit needs: every uniform grid of ``steps``, and irregular times between.

    Up to ten steps the mesh is the Farey sequence F_10 (all k / K with K <= 10: 33 times), whatever K is asked for, so
    that a grid search over ``n_steps`` shares one cached solve, whatever its random_state. The irregular times (one in
    each sixteenth, at offsets of the golden ratio) make the set of step sizes all but continuous.
    """
    ks = range(1, SHARED_STEPS + 1) if max(steps) <= SHARED_STEPS else [1, *steps]
    fractions = {Fraction(k, n) for n in ks for k in range(n + 1)}
    cells = np.arange(_IRREGULAR_TIMES)
    jitter = (cells + 0.1 + 0.8 * (cells * _GOLDEN_RATIO % 1)) / _IRREGULAR_TIMES
    start, end = t_span
    shares = sorted({float(share) for share in fractions} | set(jitter.tolist()))
    return tuple(end if share == 1 else start + (end - start) * share for share in shares)


def digest(neural_ode: NeuralODE) -> str:
    """Fingerprint of a Neural ODE: its weights and its structure, not its address or device."""
    # Once there and back: equal strings that are one object before pickling may be two after, which changes the bytes.
    packed = pack(unpack(pack(neural_ode)))
    # Importable code is pickled by name: without its source, an edited field would be served stale solutions.
    parts = [*neural_ode.modules(), neural_ode.vector_field, neural_ode.input_map, neural_ode.output_map]
    return str(joblib.hash((packed, sorted({_source(part) for part in parts}))))


def _source(part: Any) -> str:
    code = part if inspect.isroutine(part) else type(part)
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):  # built in, or typed at a prompt: then it is pickled by value
        return str(getattr(code, "__qualname__", code))


def _solve_rows(
    neural_ode: NeuralODE, x: Tensor, times: Sequence[float], rtol: float, atol: float | None, device: str
) -> np.ndarray:
    # A worker gets the module on the CPU, whatever its device here.
    neural_ode, x = neural_ode.to(device), x.to(device)
    with torch.no_grad():
        z0 = neural_ode.input_map(x)
        solution = reference_solution(
            neural_ode.vector_field, z0, times, rtol=rtol, atol=neural_ode.tolerance(atol, rtol, z0),
            x=neural_ode.control(x),
        )  # fmt: skip
    return solution.cpu().numpy()


def _solve_chunks(
    key: str,
    neural_ode: NeuralODE,
    x: np.ndarray,
    times: tuple[float, ...],
    rtol: float,
    atol: float | None,
    device: str,
    n_jobs: int | None,
    progress: bool,
) -> np.ndarray:
    with torch.no_grad():
        size = chunk_rows(neural_ode.input_map(torch.from_numpy(x[:1]).to(device)).numel())
    chunks = [torch.from_numpy(x[i : i + size]) for i in range(0, len(x), size)]
    # return_as: results are concatenated in order as they come, and the bar moves with them.
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_solve_rows)(neural_ode, chunk, times, rtol, atol, device) for chunk in chunks
    )
    bar = tqdm(jobs, total=len(chunks), desc="dopri5 reference", disable=not progress, leave=False)
    return np.concatenate(list(bar), axis=1)


def solve_references(
    neural_ode: NeuralODE,
    x: Tensor,
    times: Sequence[float],
    *,
    rtol: float,
    atol: float | None,
    double: bool = False,
    memory: Memory | str | None = None,
    n_jobs: int | None = None,
    device: str | torch.device = "cpu",
    verbose: int = 0,
) -> Tensor:
    """Dopri5 states of every row of ``x`` at ``times``, in shape (T, n, ...), on the CPU.

    Parameters
    ----------
    neural_ode : NeuralODE
    x : Tensor of shape (n, ...)
    times : sequence of float
        Strictly monotone.
    rtol : float
    atol : float or None
        None: ``rtol`` times the size of the states.
    double : bool
        Solve in float64 whatever the module's dtype.
    memory : joblib.Memory, str or None
        Where to cache solves; keyed on the weights, the rows, the times, the tolerances and the size that atol=None stands for.
    n_jobs : int or None
        Chunks of rows are solved in parallel by joblib.
    """
    if double:
        neural_ode, x = copy.deepcopy(neural_ode).double(), x.double()
    cache = check_memory(memory)
    solve = cache.cache(_solve_chunks, ignore=["neural_ode", "device", "n_jobs", "progress"])
    rows = np.ascontiguousarray(x.detach().cpu().numpy())
    key = "" if getattr(cache, "location", "") is None else f"{digest(neural_ode)} {neural_ode.state_size}"
    mesh = tuple(float(time) for time in times)
    return torch.from_numpy(
        solve(
            key, neural_ode, rows, mesh, float(rtol), None if atol is None else float(atol), str(device), n_jobs, verbose > 0
        )
    )  # fmt: skip
