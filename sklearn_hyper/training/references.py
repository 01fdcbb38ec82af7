"""Reference solutions for a whole data set: chunked, parallel, cached, with a progress bar."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction

import joblib
import numpy as np
import torch
from joblib import Memory, Parallel, delayed
from sklearn.utils.validation import check_memory
from torch import Tensor
from tqdm.auto import tqdm

from ..modules.neural_ode import NeuralODE
from ..modules.serialization import pack, unpack
from ..modules.user_code import describe_code
from ..numerics.reference import ReferenceSolveError, reference_solution
from ..numerics.row_search import solve_by_row
from ..numerics.solve import time_tensor

_CHUNK_ELEMENTS = 2**17
_PROBED_ROWS = 16
FAILED_ROWS = 64
"""So many rows without one that can be solved are the field's fault."""


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


def digest(neural_ode: NeuralODE, x: Tensor | None = None) -> str:
    """Fingerprint of what a Neural ODE computes: not its address or device.

    It holds the weights and attributes, the code of what is called, by whatever name, with the constants that it reads, and
    values: f and the input map on a few rows of x (where it is given), for what no reading of code finds.
    """
    # Once there and back: equal strings that are one object before pickling may be two after, which changes the bytes.
    packed = pack(unpack(pack(neural_ode)))
    values = [] if x is None else _probe(neural_ode, x)
    return str(joblib.hash((packed, describe_code(neural_ode.parts), values)))


def _probe(neural_ode: NeuralODE, x: Tensor) -> list[np.ndarray]:
    """States and values of f at a few rows and times, computed on the CPU and row by row, which rounds alike everywhere."""
    probed = copy.deepcopy(neural_ode).cpu()
    start, end = probed.t_span
    values = []
    with torch.no_grad():
        for row in torch.linspace(0, len(x) - 1, min(len(x), _PROBED_ROWS)).long():
            one = x[row : row + 1].clone()
            z = probed.input_map(one)
            control = probed.control(one)
            for share, scale in ((0.0, 1.0), (0.37, -0.5), (1.0, 2.0)):
                t = time_tensor(start + share * (end - start), z, probed.t_span)
                arguments = (t, scale * z) if control is None else (t, scale * z, control)
                try:
                    values.append(probed.vector_field(*arguments).detach().numpy().copy())
                except Exception as error:  # a field may refuse states that no solve comes by
                    values.append(np.array(type(error).__name__))
            values.append(z.detach().numpy())
    return values


def solve_rows(
    neural_ode: NeuralODE, x: Tensor, times: Sequence[float], rtol: float, atol: float | None
) -> tuple[Tensor, str]:
    """Reference states of one batch, nan for rows that cannot be solved, and what failed there; no gradients.

    Raises
    ------
    ReferenceSolveError
        If none can be solved.
    """
    with torch.no_grad():
        z0, control = neural_ode.input_map(x), neural_ode.control(x)
        absolute = neural_ode.tolerance(atol, rtol, z0)

        def solve(rows: Tensor, limit: int) -> Tensor:
            own = slice(None) if len(rows) == len(x) else rows.to(x.device)
            return reference_solution(
                neural_ode.vector_field, z0[own], times, rtol=rtol, atol=absolute,
                x=None if control is None else control[own], max_evaluations=limit,
            )  # fmt: skip

        return solve_by_row(solve, len(x))


def _solve_chunk(
    neural_ode: NeuralODE, x: Tensor, times: Sequence[float], rtol: float, atol: float | None, device: str
) -> tuple[np.ndarray, str]:
    # A worker gets the module on the CPU, whatever its device here.
    neural_ode, x = neural_ode.to(device), x.to(device)
    try:
        states, failed = solve_rows(neural_ode, x, times, rtol, atol)
    except ReferenceSolveError as error:  # other chunks may be solved
        with torch.no_grad():
            z0, failed = neural_ode.input_map(x), error.what
        states = z0.new_full((len(times), *z0.shape), torch.nan)
    return states.cpu().numpy(), failed


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
) -> tuple[np.ndarray, str]:
    with torch.no_grad():
        z0 = neural_ode.input_map(torch.from_numpy(x[:1]).to(device))
    size = chunk_rows(z0.numel())
    chunks = [torch.from_numpy(x[i : i + size]) for i in range(0, len(x), size)]
    # return_as: results are written in order as they come, and the bar moves with them.
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_solve_chunk)(neural_ode, chunk, times, rtol, atol, device) for chunk in chunks
    )
    bar = tqdm(jobs, total=len(chunks), desc="dopri5 reference", disable=not progress, leave=False)
    states, failed, n_solved = np.empty((0,)), "", 0
    for i, (part, what) in enumerate(bar):
        if i == 0:
            states = np.empty((len(times), len(x), *part.shape[2:]), dtype=part.dtype)
        states[:, i * size : i * size + part.shape[1]] = part
        failed = failed or what
        n_solved += part.shape[1] - len(lost_rows(part))
        n_seen = min(len(x), (i + 1) * size)
        if n_solved == 0 and (n_seen >= FAILED_ROWS or n_seen == len(x)):
            # Not one row: then it is the field, and trying the others would take as long again for each chunk.
            raise ReferenceSolveError.of(failed, range(len(x)), len(x))
    return states, failed


def lost_rows(states: np.ndarray | Tensor) -> list[int]:
    """Rows of reference states (T, n, ...) that dopri5 could not solve: those of nan."""
    ends = torch.as_tensor(states[-1]).flatten(1) if states[-1].ndim > 1 else torch.as_tensor(states[-1])[:, None]
    return ends.isnan().any(dim=1).nonzero()[:, 0].tolist()


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
    keep_lost: bool = False,
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
    keep_lost : bool
        Return nan for rows that cannot be solved, where that is not all of them.

    Raises
    ------
    ReferenceSolveError
        If rows cannot be solved; its ``rows`` are all of those.
    """
    if double:
        neural_ode, x = copy.deepcopy(neural_ode).double(), x.double()
    cache = check_memory(memory)
    solve = cache.cache(_solve_chunks, ignore=["neural_ode", "device", "n_jobs", "progress"])
    rows = np.ascontiguousarray(x.detach().cpu().numpy())
    key = "" if getattr(cache, "location", "") is None else f"{digest(neural_ode, x)} {neural_ode.state_size}"
    mesh = tuple(float(time) for time in times)
    absolute = None if atol is None else float(atol)
    states, failed = solve(key, neural_ode, rows, mesh, float(rtol), absolute, str(device), n_jobs, verbose > 0)
    # What failed is cached with the states: a solve from the cache is refused as well.
    if failed and not keep_lost:
        raise ReferenceSolveError.of(failed, lost_rows(states), len(rows))
    return torch.from_numpy(states)
