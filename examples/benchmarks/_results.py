"""What the benchmark scripts share: results that are written cell by cell, so that a stopped run goes on where it was.

A benchmark NAME has two files. ``raw/NAME.jsonl.gz`` has every cell, a JSON object a line, after a first line with the
command, versions and threads that made them. ``NAME.json`` repeats that line and has the summary of the cells.
"""

from __future__ import annotations

import argparse
import gzip
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
_PINNED = ("measured_at", "note")
"""What a person has added to the first line: it stays as long as the cells do."""
_SUMMARY_DEPTH = 3
"""Summaries have a line for every entry down to here: readable, and small in a diff."""


class NamedCells:
    """Cells whose key is their name and whose value is a dict: what all benchmarks but work_precision have."""

    @staticmethod
    def to_record(name: str, value: dict[str, Any]) -> dict[str, Any]:
        """The line of a cell."""
        return {"name": name, **value}

    @staticmethod
    def from_record(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """A cell from its line."""
        value = dict(record)
        return value.pop("name"), value


class Results:
    """The cells of a benchmark, kept in files.

    Parameters
    ----------
    path : path
        The summary; the raw file is found from it. Both are written through temporary files.
    command : str
        How to repeat the run.
    fresh : bool, default False
        Start over instead of keeping the cells that the raw file has.
    measuring : bool, default True
        Whether cells may be added. Those that are there must come from the same versions then.
    cells_as : object with to_record and from_record
        How cells become lines.
    """

    def __init__(
        self, path: str | Path, command: str, *, fresh: bool = False, measuring: bool = True, cells_as: Any = NamedCells
    ):
        self.path, self.raw_path = Path(path), raw_path(path)
        self.cells_as = cells_as
        self.cells: dict[Any, Any] = {}
        self.summary: Any = {}
        self.made_with = {"command": command, **_made_with()}
        if not fresh and self.raw_path.exists():
            header, records = read_raw(self.raw_path)
            self.cells = dict(map(cells_as.from_record, records))
            if measuring:
                self._refuse_other_versions(header)
                self.made_with |= {key: header[key] for key in _PINNED if key in header}
            else:
                self.made_with = header

    def _refuse_other_versions(self, header: dict[str, Any]) -> None:
        now = _made_with()
        if self.cells and any(header[key] != value for key, value in now.items()):
            raise SystemExit(
                f"{self.raw_path} has cells measured with {header['versions']} and {header['threads']} threads, and "
                "this run has "
                f"{now['versions']} and {now['threads']}; pass --fresh to measure all anew, or another --out."
            )

    def cell(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell of this name: from the file, or measured now and written, with its seconds."""
        if name not in self.cells:
            start = time.perf_counter()
            value = finite(measure())
            self.cells[name] = value | {"seconds": round(time.perf_counter() - start, 2)}
            self.write_raw()
            print(f"{name}: {self.cells[name]}", flush=True)
        return self.cells[name]

    def write(self, summary: Any) -> None:
        """Write the raw file, and the summary beside the command and versions."""
        self.write_raw()
        self.summary = finite(summary)
        records = (self.cells_as.to_record(key, value) for key, value in self.cells.items())
        seconds = round(sum(record.get("seconds", 0) for record in records), 1)
        content = {**self.made_with, **({"seconds": seconds} if seconds else {}), "summary": self.summary}
        _replace(self.path, (_lines_of(content, _SUMMARY_DEPTH) + "\n").encode())

    def write_raw(self) -> None:
        """Write all cells."""
        records = [self.made_with, *(self.cells_as.to_record(key, value) for key, value in self.cells.items())]
        lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        # Without a time of its own the file is the same bytes whenever it holds the same cells.
        _replace(self.raw_path, gzip.compress(lines.encode(), mtime=0))


def raw_path(path: str | Path) -> Path:
    """Where the cells of a summary are."""
    return Path(path).parent / "raw" / f"{Path(path).stem}.jsonl.gz"


def read_raw(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of a raw file, and its cells."""
    with gzip.open(path, "rt") as file:
        header, *records = map(json.loads, file)
    return header, records


def _made_with() -> dict[str, Any]:
    versions = {"sklearn_hyper": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"versions": versions, "threads": torch.get_num_threads()}


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_bytes(content)
    os.replace(draft, path)


def _lines_of(value: Any, depth: int, indent: str = "") -> str:
    """JSON with a line for every entry of dicts down to a depth, and the rest of each on that line."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = indent + " "
    entries = (f"{inner}{json.dumps(str(key))}: {_lines_of(item, depth - 1, inner)}" for key, item in value.items())
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


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


def parser(description: str | None, out: str, *, cache: bool = True) -> argparse.ArgumentParser:
    """Options that every benchmark has, and the cache of those that keep models."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", default=str(HERE / out), help="summary to write; cells in raw/ beside it are kept")
    options.add_argument("--fresh", action="store_true", help="measure all cells anew, of the models in --cache")
    if cache:
        options.add_argument(
            "--cache", default=str(HERE / ".cache"), help="folder of fitted models; delete it to fit them anew"
        )
    return options


def data_file(name: str, folder: str | None) -> Path:
    """A file of the benchmark data: in ``folder``, or where SKLEARN_HYPER_DATA points."""
    root = folder or os.environ.get("SKLEARN_HYPER_DATA")
    if root is None:
        raise SystemExit(
            f"{name} is not part of the repository: pass --data FOLDER or set SKLEARN_HYPER_DATA to a folder that has "
            "it."
        )
    path = Path(root) / name
    if not path.exists():
        raise SystemExit(f"{path} does not exist; --data or SKLEARN_HYPER_DATA must name the folder that has {name}.")
    return path
