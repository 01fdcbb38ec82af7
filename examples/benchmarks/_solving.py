"""Solves that several benchmarks make: base solvers without a correction, dopri5, and ONNX files on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_hyper import NeuralODE
from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.numerics import reference_solution, resolve_base_solver

Rows = TypeVar("Rows", np.ndarray, Tensor)


def uniform_grid(t_span: tuple[float, float], n_steps: int) -> tuple[float, ...]:
    """The mesh of n_steps equal steps; both ends are hit exactly."""
    start, end = t_span
    return (start, *(start + (end - start) * (k / n_steps) for k in range(1, n_steps)), end)


def plain_solver(ode: NeuralODE, base_solver: str, n_steps: int) -> HypersolvedODE:
    """A base solver without a correction."""
    return HypersolvedODE(ode, resolve_base_solver(base_solver), None, uniform_grid(ode.t_span, n_steps))


def dopri5_solver(ode: NeuralODE, tolerance: float) -> Callable[[Tensor], Tensor]:
    """From inputs to terminal states by torchdiffeq's dopri5 as it comes, with one tolerance, relative and absolute."""
    states = NeuralODE(
        ode.vector_field, input_map=ode.input_map, t_span=ode.t_span, data_controlled=ode.data_controlled
    )
    return lambda x: states(x, rtol=tolerance, atol=tolerance)


def solve_exactly(ode: NeuralODE, x: Tensor, times: Sequence[float], tolerance: float, batch: int) -> Tensor:
    """References, time first, which hold the tolerance for every row; ``batch`` rows are solved at a time."""
    with torch.no_grad():
        parts = [
            reference_solution(
                ode.vector_field, ode.input_map(rows), times, rtol=tolerance, atol=tolerance, x=ode.inputs(rows).x
            )
            for rows in x.split(batch)
        ]
    return torch.cat(parts, dim=1)


def count_calls(module: nn.Module | Sequence[nn.Module], call: Callable[[], object]) -> int:
    """How often a call evaluates a module, or one of several, counted by hooks."""
    calls: list[None] = []
    modules = [module] if isinstance(module, nn.Module) else module
    handles = [one.register_forward_pre_hook(lambda *_: calls.append(None)) for one in modules]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return len(calls)


def evaluated_fields(solver: nn.Module) -> list[nn.Module]:
    """The fields that a hypersolver may evaluate: the Neural ODE's, and copies of it with weights of their own."""
    kind = type(solver.neural_ode.vector_field)
    return [part for part in solver.modules() if type(part) is kind]


def repeat_rows(rows: Rows, n_rows: int) -> Rows:
    """The first rows, over again where there are too few."""
    return rows[np.arange(n_rows) % len(rows)]


def open_onnx(path: str | Path) -> Any:
    """An ONNX Runtime session of one thread."""
    import onnxruntime  # not in the environment of other packages, whose scripts share this module

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
