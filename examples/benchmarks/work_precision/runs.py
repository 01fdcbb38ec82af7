"""How a contender is run, and what comes of it: evaluations, multiply-accumulates and errors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

PARTS = ("valid", "test", "outside")
"""Rows that errors are known on: to choose on, to report on, and beyond the fitted range."""


@dataclass(frozen=True)
class Run:
    """One way to run a contender.

    Parameters
    ----------
    method : str, optional
        Of contenders that are several classical or adaptive methods.
    n_steps : int, optional
    tolerance : float, optional
    shares_f : bool
        A recipe whose second evaluations of f, at the same points, are not made and not counted.
    refitted : bool
        False for a recipe's net that was trained at another step size than it is run with.
    """

    method: str | None = None
    n_steps: int | None = None
    tolerance: float | None = None
    shares_f: bool = False
    refitted: bool = True

    @property
    def label(self) -> str:
        """In tables and among milliseconds."""
        steps = None if self.n_steps is None else f"K={self.n_steps}"
        tolerance = None if self.tolerance is None else f"{self.tolerance:g}"
        return " ".join(part for part in (self.method, steps, tolerance) if part)

    def to_record(self) -> dict[str, Any]:
        """The fields that are not their default."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


@dataclass(frozen=True)
class Errors:
    """Relative errors of terminal states over rows; None where they are not finite."""

    median: float | None
    p99: float | None
    max: float | None

    def __getitem__(self, statistic: str) -> float:
        """inf where the solve diverged."""
        value = getattr(self, statistic)
        return math.inf if value is None else value


@dataclass(frozen=True)
class Row:
    """What came of a run.

    Parameters
    ----------
    run : Run
    nfe : float
        Evaluations of f.
    macs : float or None
        Multiply-accumulates of one row; None where f has none.
    valid, test, outside : Errors
    agreement, accuracy : float, optional
        Of a classifier: how often its label is dopri5's, and how often it is right.
    """

    run: Run
    nfe: float
    macs: float | None
    valid: Errors
    test: Errors
    outside: Errors
    agreement: float | None = None
    accuracy: float | None = None

    def to_record(self) -> dict[str, Any]:
        """The row as JSON has it."""
        values = {key: value for key, value in vars(self).items() if key not in ("run", *PARTS)}
        if self.agreement is None:
            del values["agreement"], values["accuracy"]
        return {"run": self.run.to_record(), **values, **{part: asdict(getattr(self, part)) for part in PARTS}}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Row:
        """A row from JSON."""
        errors = {part: Errors(**record[part]) for part in PARTS}
        return cls(**{**record, "run": Run(**record["run"]), **errors})


def replace_counts(row: Row, nfe: float, macs: float) -> Row:
    """A row whose evaluations were counted in another way."""
    return replace(row, nfe=nfe, macs=macs if math.isfinite(macs) else None)
