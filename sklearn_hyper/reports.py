"""Tables that compare the accuracy and cost of solvers."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["SolverReport", "SolverRow"]


@dataclass(frozen=True)
class SolverRow:
    """One solver's accuracy and cost; the fields are the columns of :class:`SolverReport`.

    ``nfe`` is a mean over rows where rows differ. ``parameters`` counts the numbers that a solver keeps, of the field,
    its maps and the correction. ``bytes`` is their memory.

    Columns that are nan in every row are not printed, as the accuracy of a regressor, nor are parameters and bytes that
    are the same in all.
    """

    solver: str
    accuracy: float
    mape: float
    l2_mean: float
    l2_p50: float
    l2_p99: float
    l2_max: float
    nfe: float
    macs: float
    ms: float
    speed_up: float
    relative_overhead: float = math.nan
    parameters: float = math.nan
    bytes: float = math.nan


_HEADINGS = {
    "solver": "solver", "accuracy": "accuracy", "mape": "MAPE", "l2_mean": "rel. L2", "l2_p50": "p50", "l2_p99": "p99",
    "l2_max": "max", "nfe": "NFE", "macs": "MACs", "ms": "ms/batch", "speed_up": "speed-up", "relative_overhead": "O_r",
    "parameters": "parameters", "bytes": "bytes",
}  # fmt: skip


class SolverReport(Sequence[SolverRow]):
    """A table of solvers, which prints as text, displays as HTML, and converts to a dict or a DataFrame.

    Add reports of several hypersolvers with ``a + b``. Among rows with the same name, the first is kept.

    Parameters
    ----------
    rows : iterable of SolverRow
        One row for each solver.
    notes : iterable of str
        What a reader must know, such as why a column is nan.

    Examples
    --------
    >>> from sklearn_hyper.reports import SolverReport, SolverRow
    >>> row = SolverRow("euler K=2", 0.5, 0.2, 0.1, 0.1, 0.3, 0.4, 2, 2e6, 1.5, 8.0)
    >>> print(SolverReport([row], notes=["an example"]))
    solver    accuracy MAPE rel. L2  p50  p99  max NFE  MACs ms/batch speed-up
    euler K=2    0.500 0.20    0.10 0.10 0.30 0.40   2 2.00M      1.5     8.0x
    an example
    """

    def __init__(self, rows: Iterable[SolverRow], notes: Iterable[str] = ()):
        first: dict[str, SolverRow] = {}
        for row in rows:
            first.setdefault(row.solver, row)
        self.rows = list(first.values())
        self.notes = list(dict.fromkeys(notes))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[SolverRow]:
        return iter(self.rows)

    def __add__(self, other: SolverReport) -> SolverReport:
        return SolverReport([*self.rows, *other.rows], [*self.notes, *other.notes])

    def _columns(self) -> list[str]:
        def known(name: str) -> set[float]:
            return {value for row in self.rows if not math.isnan(value := getattr(row, name))}

        least = {"accuracy": 1, "relative_overhead": 1, "parameters": 2, "bytes": 2}
        names = [field.name for field in fields(SolverRow)]
        return [name for name in names if name not in least or len(known(name)) >= least[name]]

    def _cells(self) -> list[list[str]]:
        return [[_format(name, getattr(row, name)) for name in self._columns()] for row in self.rows]

    def __str__(self) -> str:
        table = [[_HEADINGS[name] for name in self._columns()], *self._cells()]
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = [
            " ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
                ]
            )
            for line in table
        ]
        return "\n".join([*lines, *self.notes])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(_HEADINGS[name])}</th>" for name in self._columns())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in self._cells()
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the rows as dicts, keyed by solver.

        Returns
        -------
        dict of str to dict
        """
        return {row.solver: {key: value for key, value in asdict(row).items() if key != "solver"} for row in self.rows}

    def to_frame(self) -> Any:
        """Return the rows as a pandas DataFrame, indexed by solver (needs pandas, extra ``plots``).

        Returns
        -------
        pandas.DataFrame
        """
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows]).set_index("solver")


def _format(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if name == "accuracy":
        return f"{value:.3f}"
    if name == "nfe":
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if name in ("macs", "parameters", "bytes"):
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if value >= size:
                return f"{value / size:.2f}{unit}"
        return f"{value:.0f}"
    if name in ("ms", "speed_up"):
        text = f"{value:#.2g}" if value < 10 else f"{value:.0f}"
        return text if name == "ms" else text + "x"
    if name == "relative_overhead":
        return f"{value:.2f}"
    return f"{value:#.2g}"
