"""What is measured in one go: a contender on a problem from a seed, the milliseconds of a problem, or a check.

Cells are the keys of the raw file, and outcomes their values; each pair is a line of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .contenders import Contender
from .problems import PROBLEMS, Problem
from .runs import Row


@dataclass(frozen=True)
class Trial:
    """A contender on a problem.

    Parameters
    ----------
    problem : Problem
    contender : Contender
    seed : int or None
        None where it makes no difference.
    """

    problem: Problem
    contender: Contender
    seed: int | None = None

    kind: ClassVar[str] = "trial"

    @property
    def label(self) -> str:
        """The name of the cell in logs."""
        seed = "" if self.seed is None else f" | seed {self.seed}"
        return f"{self.problem.name} | {self.contender.label}{seed}"

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {"problem": self.problem.name, "contender": self.contender.to_record(), "seed": self.seed}

    @classmethod
    def pop_from(cls, record: dict[str, Any]) -> Trial:
        """The cell of a line, whose fields are taken out of it."""
        problem = PROBLEMS[record.pop("problem")]
        return cls(problem, Contender.from_record(record.pop("contender")), record.pop("seed"))


@dataclass(frozen=True)
class Timing:
    """The milliseconds of all contenders on a problem, in turn."""

    problem: Problem

    kind: ClassVar[str] = "milliseconds"

    @property
    def label(self) -> str:
        """The name of the cell in logs."""
        return f"{self.problem.name} | milliseconds"

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {"problem": self.problem.name}

    @classmethod
    def pop_from(cls, record: dict[str, Any]) -> Timing:
        """The cell of a line, whose fields are taken out of it."""
        return cls(PROBLEMS[record.pop("problem")])


@dataclass(frozen=True)
class Check:
    """A re-implemented rival beside its published figure: one step of the pendulum.

    Parameters
    ----------
    dt : float
        The step size.
    """

    dt: float

    kind: ClassVar[str] = "check"

    @property
    def label(self) -> str:
        """The name of the cell in logs and tables."""
        return f"check pendulum dt={self.dt:g}"

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {"dt": self.dt}

    @classmethod
    def pop_from(cls, record: dict[str, Any]) -> Check:
        """The cell of a line, whose fields are taken out of it."""
        return cls(record.pop("dt"))


Cell = Trial | Timing | Check
_KINDS: dict[str, type[Trial] | type[Timing] | type[Check]] = {kind.kind: kind for kind in (Trial, Timing, Check)}


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Parameters
    ----------
    macs_f : float or None
        Multiply-accumulates of one evaluation of f.
    rows : tuple of Row
        One for every way the contender was run.
    base : Row, optional
        Of ours: the base solver without its correction.
    facts : dict
        What else there is to know of ours and of other fits: seconds, iterations, errors on the way, warnings,
        "fallback" (ours has given up its correction), "diverged" (why there are no rows, or fewer).
    """

    macs_f: float | None
    rows: tuple[Row, ...]
    base: Row | None
    facts: dict[str, Any]

    def cost(self, row: Row) -> float:
        """In evaluations of f, with the multiply-accumulates of everything else."""
        return row.nfe if self.macs_f is None else row.macs / self.macs_f

    def to_record(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        base = {} if self.base is None else {"base": self.base.to_record()}
        return {"macs_f": self.macs_f, **self.facts, "rows": [row.to_record() for row in self.rows], **base}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Outcome:
        """An outcome from JSON."""
        facts = dict(record)
        base = facts.pop("base", None)
        return cls(
            macs_f=facts.pop("macs_f"),
            rows=tuple(map(Row.from_record, facts.pop("rows"))),
            base=None if base is None else Row.from_record(base),
            facts=facts,
        )


def to_record(cell: Cell, outcome: Any) -> dict[str, Any]:
    """The line of a cell."""
    values = outcome.to_record() if isinstance(outcome, Outcome) else outcome
    return {"kind": cell.kind, **cell.to_record(), **values}


def from_record(record: dict[str, Any]) -> tuple[Cell, Any]:
    """A cell and its outcome from their line: an :class:`Outcome` of a trial, a dict of other cells."""
    values = dict(record)
    cell = _KINDS[values.pop("kind")].pop_from(values)
    return cell, Outcome.from_record(values) if isinstance(cell, Trial) else values
