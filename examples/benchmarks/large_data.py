"""Rows on a disk, and rows in chunks: what memory a fit takes, and what going on from chunk to chunk costs.

    python examples/benchmarks/large_data.py [--out large_data.json]

- Memory: a file of 10 million rows of 32 float32 numbers, mapped into memory. Each of "start", "fit" and "predict" has a
  process of its own; the peak is the most memory it took, in GiB, the file's own pages among it (Linux).
- Chunks: MAPE on rows of all chunks, of one fit on all rows, and of one that goes on (``warm_start``) through three
  chunks of 200 rows, for a linear field. Chunks are alike, or each comes from a place of its own. Three seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import Results, parser, spread
from torch import Tensor

from sklearn_hyper import HypersolverRegressor, MLPCorrection
from sklearn_hyper.modules import MLPVectorField

N_ROWS, WIDTH, WRITTEN = 10_000_000, 32, 100_000
PARTS = ("start", "fit", "predict")
PLACES, N_CHUNK, SEEDS = ((1.0, 0.0), (0.0, 1.0), (-1.0, -1.0)), 200, (0, 1, 2)
TURN = torch.tensor([[-0.5, 3.0], [-3.0, -0.5]], dtype=torch.float64)


# ---------------------------------------------------------------------- memory
def write_rows(path: Path) -> None:
    """Write the file, a part at a time."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(N_ROWS, WIDTH))
    draw = np.random.default_rng(0)
    for start in range(0, N_ROWS, WRITTEN):
        rows[start : start + WRITTEN] = draw.normal(size=(WRITTEN, WIDTH))
    rows.flush()


def peak_here(part: str, path: str) -> float:
    """GiB that this process takes at most for a part; those before it come with it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # two epochs: what comes out is not looked at
    X = np.load(path, mmap_mode="r")
    torch.manual_seed(0)
    fast = HypersolverRegressor(
        MLPVectorField(WIDTH, hidden=16), base_solver="heun", n_steps=1, max_samples=500, max_epochs=2, random_state=0
    )
    fast.fit(X if part == "fit" else np.array(X[:2000]))
    if part == "predict":
        fast.predict(X)
    # Not getrusage's, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20


def peaks() -> dict[str, float]:
    """Peaks of all parts, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path)
        found = {"file": path.stat().st_size / 2**30}
        for part in PARTS:
            command = [sys.executable, __file__, "--here", part, str(path)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            found[part] = json.loads(answer.stdout.splitlines()[-1])
    return found


# ---------------------------------------------------------------------- chunks
def turn(t: Tensor, z: Tensor) -> Tensor:
    """A linear field, which spirals in."""
    return z @ TURN.to(z).T


def chunks(kind: str, seed: int) -> list[np.ndarray]:
    """Three chunks of rows around three places: one place each, or all shuffled."""
    draw = np.random.default_rng(seed)
    apart = [np.array(place) + 0.3 * draw.normal(size=(N_CHUNK, 2)) for place in PLACES]
    return apart if kind == "apart" else np.split(draw.permutation(np.concatenate(apart)), len(PLACES))


def compare(kind: str, seed: int) -> dict[str, float]:
    """MAPE of one fit, of going on, and of the base solver."""
    parts, test = chunks(kind, seed), np.concatenate(chunks("apart", 1000 + seed))
    given: dict[str, Any] = {"base_solver": "euler", "n_steps": 4, "correction": MLPCorrection(hidden=16)}
    given |= {"max_epochs": 20, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = HypersolverRegressor(turn, **given).fit(np.concatenate(parts))
        going_on = HypersolverRegressor(turn, **given, warm_start=True)
        for part in parts:
            going_on.fit(part)
    solvers = {"one fit": one, "going on": going_on, "Euler alone": one.without_correction()}
    return {name: -solver.score(test) for name, solver in solvers.items()}


def summarise(cells: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Peaks, and medians and ranges over seeds."""
    found: dict[str, Any] = {"GiB": {name: value for name, value in cells["memory"].items() if name != "seconds"}}
    for kind in ("alike", "apart"):
        of_kind = [cell for name, cell in cells.items() if name.startswith(kind)]
        found[f"MAPE, chunks {kind}"] = {
            name: spread([cell[name] for cell in of_kind]) for name in ("one fit", "going on", "Euler alone")
        }
    return found


def main() -> None:
    options = parser(__doc__, "large_data.json", cache=False)
    options.add_argument("--here", nargs=2, metavar=("PART", "FILE"), help="measure one part in this process")
    arguments = options.parse_args()
    if arguments.here:
        print(json.dumps(peak_here(*arguments.here)))
        return
    torch.set_num_threads(1)
    results = Results(arguments.out, "python examples/benchmarks/large_data.py", fresh=arguments.fresh)
    for kind in ("alike", "apart"):
        for seed in SEEDS:
            results.cell(f"{kind}: {seed}", lambda kind=kind, seed=seed: compare(kind, seed))
    results.cell("memory", peaks)
    results.write(summarise(results.cells))
    print(json.dumps(results.summary, indent=1))


if __name__ == "__main__":
    main()
