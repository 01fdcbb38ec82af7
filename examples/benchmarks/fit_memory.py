"""Peak memory of default fits, whose corrections are in the field's weights, by the size of the field.

    python examples/benchmarks/fit_memory.py [--out fit_memory.json]

Every fit runs in a process of its own, for two epochs: later ones hold no more. "before" is what the process had taken
with torch, the field and its rows; "peak" is the most it took by the end of the fit.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from _results import Results, parser
from torch import Tensor, nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.modules import MLPVectorField

FIELDS: dict[str, dict[str, Any]] = {
    "16-64-64-16": {"hidden": 64, "n_rows": 2000, "n_steps": 4},
    "16-512-512-16": {"hidden": 512, "n_rows": 2000, "n_steps": 4},
    "16-2048-2048-16": {"hidden": 2048, "n_rows": 2000, "n_steps": 4},
    "convolutions, 32 channels of 28 x 28": {"channels": 32, "n_rows": 300, "n_steps": 2},
}
"""Vectors of 16, and images of the paper's size."""


class ConvField(nn.Module):
    """Two 3 x 3 convolutions, and time as a channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        time = torch.as_tensor(t).to(z).expand(len(z), 1, *z.shape[2:])
        return self.second(torch.tanh(self.first(torch.cat([z, time], dim=1))))


def _peak() -> float:
    """MiB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_here(name: str) -> dict[str, Any]:
    """A fit in this process."""
    torch.manual_seed(0)
    given = FIELDS[name]
    is_images = "channels" in given
    shape = (given["channels"], 28, 28) if is_images else (16,)
    field = ConvField(given["channels"]) if is_images else MLPVectorField(16, hidden=given["hidden"])
    X = np.random.default_rng(0).normal(size=(given["n_rows"], *shape)).astype(np.float32)
    before = _peak()
    fast = HypersolverRegressor(field, n_steps=given["n_steps"], max_epochs=2, random_state=0).fit(X)
    n_weights = sum(weight.numel() for weight in field.parameters())
    return {
        "weights": n_weights, "rows": len(X), "batch": fast.batch_size, "steps": fast.n_steps, "before": before,
        "peak": _peak(),
    }  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """A fit in a process of its own."""
    answer = subprocess.run([sys.executable, __file__, "--here", name], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__, "fit_memory.json", cache=False)
    options.add_argument("--here", choices=FIELDS, help="measure one field in this process, and print it as JSON")
    arguments = options.parse_args()
    if arguments.here:
        print(json.dumps(measure_here(arguments.here)))
        return
    results = Results(arguments.out, "python examples/benchmarks/fit_memory.py", fresh=arguments.fresh)
    for name in FIELDS:
        results.cell(name, lambda name=name: measure(name))
    results.write(results.cells)
    print(f"{'field':40}{'weights':>12}{'before':>10}{'peak':>10}  MiB")
    for name, cell in results.summary.items():
        print(f"{name:40}{cell['weights']:>12,}{cell['before']:>10.0f}{cell['peak']:>10.0f}")


if __name__ == "__main__":
    main()
