"""Reference solutions of a whole data set: in chunks, in parallel, cached, with a progress bar."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import joblib
import numpy as np
import torch
from joblib import Parallel, delayed
from joblib.memory import MemorizedFunc
from sklearn.utils.validation import check_memory
from torch import Tensor
from tqdm.auto import tqdm

from ..modules.neural_ode import NeuralODE
from ..modules.serialization import pack, unpack
from ..modules.user_code import describe_code
from ..numerics.protection import FieldInputs
from ..numerics.reference import ReferenceSolveError
from ..numerics.row_errors import numbered_rows
from ..numerics.row_search import solve_by_row
from ..numerics.times import time_tensor
from .settings import SolveSettings
from .tasks import Task

_CHUNK_ELEMENTS = 2**17
_PROBED_ROWS = 16
FAILED_ROWS = 64
"""If this many rows fail and none can be solved, the field is at fault and the others are not tried."""


def chunk_rows(state_numel: int) -> int:
    """Return the rows in a solve. They depend on the state's size alone, so n_jobs and batch_size change no result."""
    return min(8192, max(32, _CHUNK_ELEMENTS // state_numel))


def digest(neural_ode: NeuralODE, x: Tensor | None = None, condition: Mapping[str, Any] | None = None) -> str:
    """Return a fingerprint of what a Neural ODE computes, independent of its address and device.

    It covers weights, attributes, and the code of all that is called, with the constants that the code reads. Given x,
    it also covers values of f and the input map on a few rows, for whatever reading code cannot find.
    """
    # Pickle, unpickle and pickle again. Equal strings that are one object may become two, which changes the bytes.
    packed = pack(unpack(pack(neural_ode)))
    values = [] if x is None else _probe(neural_ode, x, condition)
    return str(joblib.hash((packed, describe_code(neural_ode.parts), values)))


def computes_alike(one: NeuralODE, other: NeuralODE, x: Tensor, condition: Mapping[str, Any] | None = None) -> bool:
    """Return whether two Neural ODEs have one span, and equal values of field and input map at a few rows and times."""
    pairs = zip(_probe(one, x, condition), _probe(other, x, condition), strict=True)
    return one.t_span == other.t_span and all(_are_equal(a, b) for a, b in pairs)


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Compare probed values. A root or logarithm may be nan in both; names of errors are strings."""
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.array_equal(one, other, equal_nan=True))


def _probe(neural_ode: NeuralODE, x: Tensor, condition: Mapping[str, Any] | None) -> list[np.ndarray]:
    """Compute states and values of f at a few rows and times: row by row on the CPU, to round alike everywhere."""
    probed = copy.deepcopy(neural_ode).cpu()
    start, end = probed.t_span
    values = []
    with torch.no_grad():
        for row in torch.linspace(0, len(x) - 1, min(len(x), _PROBED_ROWS)).long().tolist():
            x_row = x[row : row + 1].clone()
            z = probed.input_map(x_row)
            inputs = probed.inputs(x_row, FieldInputs(condition=condition or {}).rows(slice(row, row + 1)).condition)
            for share, scale in ((0.0, 1.0), (0.37, -0.5), (1.0, 2.0)):
                t = time_tensor(start + share * (end - start), z, probed.t_span)
                try:
                    value = probed.vector_field(t, scale * z, *inputs.arguments, **inputs.condition)
                    values.append(value.detach().numpy().copy())
                except Exception as error:  # a field may refuse states that no solve reaches
                    values.append(np.array(type(error).__name__))
            values.append(z.detach().numpy())
    return values


def solve_rows(
    neural_ode: NeuralODE,
    x: Tensor,
    times: Sequence[float] | Tensor,
    rtol: float,
    atol: float | None,
    condition: Mapping[str, Any] | None = None,
) -> tuple[Tensor, str]:
    """Solve the references of one batch without gradients; return the states and what failed, if anything.

    States are of shape (n_times, batch, ...), and nan for rows that cannot be solved. ``times`` of shape (batch,
    n_times), padded with nan, are of their own for each row; the states are then zero where the time is nan.

    Raises
    ------
    ReferenceSolveError
        If none of the rows can be solved.
    """
    with torch.no_grad():
        z0, inputs = neural_ode.input_map(x), neural_ode.inputs(x, condition)
        absolute = neural_ode.tolerance(atol, rtol, z0)

        def solve(rows: Tensor, limit: int) -> Tensor:
            index = slice(None) if len(rows) == len(x) else rows.to(x.device)
            if isinstance(times, Tensor):
                return neural_ode.reference_at(
                    z0[index], inputs.rows(index), times[index], rtol=rtol, atol=absolute, max_evaluations=limit
                ).movedim(1, 0)
            return neural_ode.reference(
                z0[index], inputs.rows(index), times, rtol=rtol, atol=absolute, max_evaluations=limit
            )

        return solve_by_row(solve, len(x))


def _solve_chunk(
    neural_ode: NeuralODE,
    x: Tensor,
    condition: Mapping[str, Any],
    times: Sequence[float],
    rtol: float,
    atol: float | None,
    device: str,
) -> tuple[np.ndarray, str]:
    # In a worker, the module arrives on the CPU, whatever its device was.
    neural_ode, x = neural_ode.to(device), x.to(device)
    condition = FieldInputs(condition=condition).each(lambda tensor: tensor.to(device)).condition
    try:
        states, failed = solve_rows(neural_ode, x, times, rtol, atol, condition)
    except ReferenceSolveError as error:  # other chunks may be solved
        with torch.no_grad():
            z0, failed = neural_ode.input_map(x), error.what
        states = z0.new_full((len(times), *z0.shape), torch.nan)
    return states.cpu().numpy(), failed


def _parallel(n_jobs: int | None) -> Parallel:
    """Return joblib's loop on the backend of the user."""
    try:
        # A generator gives results as they come, so that the bar moves and none are held twice.
        return Parallel(n_jobs=n_jobs, return_as="generator")
    except ValueError:  # joblib has none on its backends "multiprocessing" and "ray"
        return Parallel(n_jobs=n_jobs)


def _solve_chunks(
    key: str,
    neural_ode: NeuralODE,
    x: np.ndarray,
    condition: Mapping[str, Any],
    times: tuple[float, ...],
    rtol: float,
    atol: float | None,
    device: str,
    n_jobs: int | None,
    progress: bool,
) -> tuple[np.ndarray, str, str]:
    rows, given = torch.from_numpy(x), FieldInputs(condition=condition)
    with torch.no_grad():
        z0 = neural_ode.input_map(rows[:1].to(device))
    size = chunk_rows(z0.numel())
    chunks = [slice(i, i + size) for i in range(0, len(x), size)]
    jobs = _parallel(n_jobs)(
        delayed(_solve_chunk)(neural_ode, rows[chunk], given.rows(chunk).condition, times, rtol, atol, device)
        for chunk in chunks
    )
    bar = tqdm(jobs, total=len(chunks), desc="dopri5 reference", disable=not progress, leave=False)
    states, failed, n_solved = np.empty((0,)), "", 0
    for i, (part, what) in enumerate(bar):
        if i == 0:
            states = np.empty((len(times), len(x), *part.shape[2:]), dtype=part.dtype)
        solved = states[:, i * size : i * size + part.shape[1]]
        solved[:] = part
        failed = failed or what
        n_solved += part.shape[1] - len(lost_rows(solved))
        n_seen = min(len(x), (i + 1) * size)
        if n_solved == 0 and (n_seen >= FAILED_ROWS or n_seen == len(x)):
            # No row could be solved, so the field is at fault. Other chunks would take as long and fail too.
            raise ReferenceSolveError.of(failed, range(len(x)), len(x))
    return states, failed, _seal(states)


def _seal(states: np.ndarray) -> str:
    """Return a checksum of solved states, which is cached beside them: a damaged entry may load as other numbers."""
    return hashlib.blake2b(np.ascontiguousarray(states).view(np.uint8).data, digest_size=16).hexdigest()


def _is_intact(entry: Any) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == 3
        and isinstance(entry[0], np.ndarray)
        and isinstance(entry[1], str)
        and entry[2] == _seal(entry[0])
    )


def _solve_or_load(solve: Any, arguments: tuple[Any, ...], memory: Any) -> tuple[np.ndarray, str]:
    """Return the states and what failed, from the cache if they are there as they were written."""
    try:
        entry = solve(*arguments)
    except OSError as error:  # a full disk, say; one of the user's field is raised again below
        entry = _solve_chunks(*arguments)
        warnings.warn(
            f"memory={memory!r} cannot be written to ({error}), and this reference is solved without it.",
            UserWarning,
            stacklevel=2,
        )
    if not _is_intact(entry):
        warnings.warn(
            f"memory={memory!r} holds a damaged reference solve, which is solved again. If this happens often, check "
            "the disk.",
            UserWarning,
            stacklevel=2,
        )
        if isinstance(solve, MemorizedFunc):
            solve.call_and_shelve(*arguments).clear()  # shelving loads nothing, so that damage does not matter here
            entry = solve(*arguments)
        else:  # a cache of another make, whose entries cannot be cleared one by one
            entry = _solve_chunks(*arguments)
    return entry[0], entry[1]


def _open_cache(memory: Any) -> Any:
    """Return the cache, or say what is wrong with its folder, before any solve."""
    try:
        return check_memory(memory)
    except OSError as error:
        raise OSError(
            error.errno,
            f"memory={memory!r} is no folder that can be made or written to ({error.strerror or error}); pass "
            "another one, or memory=None",
        ) from error


def lost_rows(states: np.ndarray | Tensor) -> list[int]:
    """Return the rows of reference states (T, n, ...) that dopri5 could not solve, which are nan."""
    ends = torch.as_tensor(states[-1]).flatten(1) if states[-1].ndim > 1 else torch.as_tensor(states[-1])[:, None]
    return ends.isnan().any(dim=1).nonzero()[:, 0].tolist()


def solve_references(
    task: Task,
    times: Sequence[float],
    settings: SolveSettings,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    double: bool = False,
    keep_lost: bool = False,
) -> Tensor:
    """Solve every row of a task by dopri5; return the states at ``times``, of shape (T, n, ...), on the CPU.

    Parameters
    ----------
    task : Task
    times : sequence of float
        Strictly monotone.
    settings : SolveSettings
        With ``memory``, solves are cached by weights, rows, times, tolerances and the size that atol=None stands for.
        With ``n_jobs``, joblib solves chunks of rows in parallel.
    rtol, atol : float, optional
        Tolerances to use instead of the settings', which are the default. An atol of None beside an rtol stands for
        ``rtol`` times the size of the states.
    double : bool
        Solve in float64 whatever the module's dtype.
    keep_lost : bool
        Return nan for rows that cannot be solved, instead of raising. If no row can be solved, it still raises.

    Raises
    ------
    ReferenceSolveError
        If some rows cannot be solved. Its ``rows`` are all of them.
    OSError
        If the cache's folder can be neither made nor written to.

    Warns
    -----
    UserWarning
        If a cached solve is damaged, and solved again. If the cache cannot be written to.
    """
    if task.n_given is not None:
        # Apart, so that those that were given are found in a cache whatever was drawn beside them.
        parts = []
        for rows in (range(task.n_given), range(task.n_given, len(task))):
            part = task.rows(slice(rows.start, rows.stop))
            with numbered_rows(rows, len(task)):
                parts.append(
                    solve_references(part, times, settings, rtol=rtol, atol=atol, double=double, keep_lost=keep_lost)
                )
        return torch.cat(parts, dim=1)
    if rtol is None:
        rtol, atol = settings.rtol, settings.atol
    if double:
        task = Task(copy.deepcopy(task.neural_ode).double(), task.x, task.condition).to(dtype=torch.float64)
    cache = _open_cache(settings.memory)
    solve = cache.cache(_solve_chunks, ignore=["neural_ode", "condition", "device", "n_jobs", "progress"])
    x = np.ascontiguousarray(task.x.detach().cpu().numpy())
    key = "" if getattr(cache, "location", "") is None else _key(task)
    mesh = tuple(float(time) for time in times)
    absolute = None if atol is None else float(atol)
    arguments = (
        key, task.neural_ode, x, task.condition, mesh, float(rtol), absolute,
        str(settings.device), settings.n_jobs, settings.verbose > 0,
    )  # fmt: skip
    states, failed = _solve_or_load(solve, arguments, settings.memory)
    # What failed is cached with the states, so that a cached solve is refused as well.
    if failed and not keep_lost:
        raise ReferenceSolveError.of(failed, lost_rows(states), len(x))
    return torch.from_numpy(states)


def _key(task: Task) -> str:
    """Return a key for all that a solve depends on, except for the rows of x, which joblib hashes itself."""
    fingerprint = digest(task.neural_ode, task.x, task.condition)
    condition = f" {joblib.hash(pack(dict(task.condition)))}" if task.condition else ""
    return f"{fingerprint} {task.neural_ode.state_size}{condition}"


def solve_ends(task: Task, settings: SolveSettings) -> Tensor:
    """Solve references at both ends of the span only; return states of shape (2, n, ...)."""
    return solve_references(task, task.neural_ode.t_span, settings)
