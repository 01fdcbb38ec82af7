"""What the benchmark scripts share: results that are written cell by cell, so that a stopped run goes on where it was."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from sklearn_hyper import __version__

HERE = Path(__file__).parent


class Results:
    """A JSON file of named cells, with the command, versions and threads that made them.

    Parameters
    ----------
    path : path
        Written after every cell, through a temporary file.
    command : str
        How to repeat the run.
    fresh : bool, default False
        Start over instead of keeping the cells that the file has.
    """

    def __init__(self, path: str | Path, command: str, *, fresh: bool = False):
        self.path = Path(path)
        made_with = {
            "versions": {
                "sklearn_hyper": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "threads": torch.get_num_threads(),
        }
        known, pinned = {}, {}
        if not fresh and self.path.exists():
            old = json.loads(self.path.read_text())
            known = old["cells"]
            if "measured_at" in old:  # by an earlier state of the library, which the page of figures names
                pinned = {"measured_at": old["measured_at"]}
            if known and any(old[key] != value for key, value in made_with.items()):
                raise SystemExit(
                    f"{self.path} has cells measured with {old['versions']} and {old['threads']} threads, and this run has "
                    f"{made_with['versions']} and {made_with['threads']}; pass --fresh to measure all anew, or another --out."
                )
        self.payload: dict[str, Any] = {
            "command": command,
            **made_with,
            **pinned,
            "summary": {},
            "cells": known,
        }

    @property
    def cells(self) -> dict[str, Any]:
        """What has been measured, by name."""
        return self.payload["cells"]

    def cell(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell of this name: from the file, or measured now and written, with its seconds."""
        if name not in self.cells:
            start = time.perf_counter()
            value = finite(measure())
            self.cells[name] = value | {"seconds": round(time.perf_counter() - start, 2)}
            self.write()
            print(f"{name}: {self.cells[name]}", flush=True)
        return self.cells[name]

    def write(self, summary: Any = None) -> None:
        """Write the file, with a summary of the cells if there is one."""
        if summary is not None:
            self.payload["summary"] = summary
        self.payload["seconds"] = round(sum(cell.get("seconds", 0) for cell in self.cells.values()), 1)
        draft = self.path.with_suffix(".tmp")
        # A line a cell: readable, and a cell more is a line more in a diff.
        cells = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cell)}" for name, cell in self.cells.items())
        rest = {key: value for key, value in self.payload.items() if key != "cells"}
        draft.write_text(f'{json.dumps(rest, indent=1)[:-2]},\n "cells": {{\n{cells}\n }}\n}}\n')
        os.replace(draft, self.path)


def finite(value: Any) -> Any:
    """Plain Python for JSON: arrays become lists, numbers keep six digits, nan and inf become null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and range over seeds."""
    known = list(values)
    return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def fitted(cache: str | Path, name: str, fit: Callable[[], Any]) -> Any:
    """A fitted estimator from ``cache``, or fitted now and put there (through a temporary file)."""
    path = Path(cache) / f"{name}.joblib"
    if path.exists():
        return joblib.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    estimator = fit()
    draft = path.with_suffix(".tmp")
    joblib.dump(estimator, draft)
    os.replace(draft, path)
    return estimator


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", default=str(HERE / out), help="JSON to write; cells it already has are kept")
    options.add_argument("--fresh", action="store_true", help="measure all cells anew, of the models in --cache")
    options.add_argument(
        "--cache", default=str(HERE / ".cache"), help="folder of fitted models; delete it to fit them anew"
    )
    return options


def data_file(name: str, folder: str | None) -> Path:
    """A file of the benchmark data: in ``folder``, or where SKLEARN_HYPER_DATA points."""
    root = folder or os.environ.get("SKLEARN_HYPER_DATA")
    if root is None:
        raise SystemExit(
            f"{name} is not part of the repository: pass --data FOLDER or set SKLEARN_HYPER_DATA to a folder that has it."
        )
    path = Path(root) / name
    if not path.exists():
        raise SystemExit(f"{path} does not exist; --data or SKLEARN_HYPER_DATA must name the folder that has {name}.")
    return path
