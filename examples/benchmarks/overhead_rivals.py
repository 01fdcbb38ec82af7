"""The rows of overhead.py that need torchdyn, which runs in an environment of its own; and what both scripts share.

    INTERPRETER overhead_rivals.py ROUNDS

Prints JSON: by field and batch, milliseconds of torchdyn's HyperEuler and of ours, with the same f, g and number of
steps, timed in turn in one process, and the median of their ratio.
"""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from _solving import uniform_grid
from torch import Tensor, nn

from sklearn_hyper.modules import ConvVectorField, HypersolvedODE, MLPVectorField, NeuralODE
from sklearn_hyper.numerics import resolve_base_solver, time_interleaved

K = 4
BATCHES = (1, 256, 4096)
FIELDS = ("2-64-64-2, fitted", "digits")


def time_rounds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """Milliseconds of every call, round by round."""
    return [time_interleaved(calls, repeats=1, warmup=1) for _ in range(rounds)]


class OfTheState(nn.Module):
    """A net that reads the state alone, as a correction of ours."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        return self.net(z)


def build(field: str) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """f, a g of a fraction of its size, and the shape of a state."""
    torch.manual_seed(0)
    if field == "digits":
        net = nn.Sequential(nn.Conv2d(8, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 8, 3, padding=1))
        return ConvVectorField(8), net, (8, 8, 8)
    return MLPVectorField(2), nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 2)), (2,)


def compare(field: str, batch: int, rounds: int) -> dict[str, float]:
    """torchdyn's HyperEuler beside ours."""
    from torchdyn.numerics import odeint
    from torchdyn.numerics.solvers.hyper import HyperEuler

    f, net, shape = build(field)
    z = torch.randn(batch, *shape)
    mesh, rival = torch.linspace(0, 1, K + 1), HyperEuler(lambda t, z: net(z))
    euler = resolve_base_solver("euler")
    ours = HypersolvedODE(NeuralODE(f), euler, OfTheState(net), uniform_grid((0.0, 1.0), K)).eval()

    def theirs() -> Tensor:
        return odeint(f, z, mesh, solver=rival)[1][-1]

    torch.testing.assert_close(ours(z), theirs())
    times = time_rounds({"ours": lambda: ours(z), "torchdyn": theirs}, rounds)
    medians = {f"{name}_ms": statistics.median(one[name] for one in times) for name in times[0]}
    return medians | {"ratio": statistics.median(one["torchdyn"] / one["ours"] for one in times)}


def main() -> None:
    torch.set_num_threads(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchdyn's own
        found = {field: {str(batch): compare(field, batch, int(sys.argv[1])) for batch in BATCHES} for field in FIELDS}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
