"""Record all configurations: ``python tests/golden/record.py`` writes ``golden.npz`` beside this file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the folder of tests
from golden.configurations import CONFIGURATIONS, run

import sklearn_hyper


def main(path: Path) -> None:
    """Run every configuration with one thread, and write what all of them give to one file."""
    torch.set_num_threads(1)
    print(f"recording {sklearn_hyper.__file__}")
    arrays, started = {}, time.perf_counter()
    for name in CONFIGURATIONS:
        began = time.perf_counter()
        values = run(name)
        arrays |= {f"{name}/{key}": value for key, value in values.items()}
        kinds = " ".join(values["warnings"].tolist())
        print(f"{name:26}{time.perf_counter() - began:6.2f} s {len(values):4} values  {kinds}", flush=True)
    np.savez_compressed(path, **arrays)
    print(f"{time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e6:.2f} MB in {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("golden.npz"))
