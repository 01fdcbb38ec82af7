"""Who is compared: our hypersolvers, classical and adaptive solvers, and what others learn in place of a solver.

A contender is a frozen value. It says what it is called, whether a seed makes a difference, and on how many seeds it is
measured; ``trials`` knows how. Files keep it as its family and those fields that are not their default.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .runs import Run

BUDGETS = (2, 4, 8)
"""Evaluations of f that contenders are compared at."""
GENERALIST_STEPS = (1, 2, 4, 8, 16)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Contender:
    """Base class."""

    family: ClassVar[str]
    label_format: ClassVar[str]
    """Its name, with fields in braces."""
    seeded: ClassVar[bool] = True
    """Whether the seed makes a difference."""

    @property
    def label(self) -> str:
        """Its name in tables, logs and options."""
        return self.label_format.format(**vars(self))

    @property
    def fit_kind(self) -> str | None:
        """Under which name its fit's CPU seconds are gathered; None where they are not."""
        return None

    @property
    def once(self) -> bool:
        """One seed serves everywhere, to stay within hours: variants, and trained rivals that no target is about."""
        return False

    def run_label(self, run: Run) -> str:
        """The name of one way to run it."""
        return run.label

    def to_record(self) -> dict[str, Any]:
        """As JSON has it."""
        changed = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
        return {"family": self.family, **plain}

    @staticmethod
    def from_record(record: dict[str, Any]) -> Contender:
        """A contender from JSON."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
        return FAMILIES[values.pop("family")](**values)


@dataclass(frozen=True)
class Ours(Contender):
    """A hypersolver of this library.

    Parameters
    ----------
    n_steps : int
    base_solver : str
    fit_n_steps : pair of int, optional
        Given for a generalist: one net for a range of numbers of steps.
    """

    n_steps: int
    base_solver: str = "auto"
    fit_n_steps: tuple[int, int] | None = None

    family: ClassVar[str] = "ours"

    @property
    def is_generalist(self) -> bool:
        return self.fit_n_steps is not None

    @property
    def is_default(self) -> bool:
        """Fitted by the defaults for its number of steps."""
        return self.base_solver == "auto" and not self.is_generalist

    @property
    def label(self) -> str:
        """Its name in tables, logs and options."""
        if self.is_generalist:
            return "ours generalist"
        return f"ours {'default' if self.is_default else self.base_solver} {self.n_steps} NFE"

    @property
    def fit_kind(self) -> str | None:
        return self.label if self.is_default else None

    @property
    def once(self) -> bool:
        return not self.is_default

    def is_own(self, run: Run) -> bool:
        """Whether a run has a number of steps that it was fitted for."""
        return self.is_generalist or run.n_steps == self.n_steps

    def settings(self) -> dict[str, Any]:
        """Arguments of HypersolverRegressor; everything else is its default."""
        return {"base_solver": self.base_solver, "n_steps": self.n_steps, "fit_n_steps": self.fit_n_steps}


@dataclass(frozen=True)
class Classical(Contender):
    """Fixed-step methods without training."""

    family: ClassVar[str] = "classical"
    label_format: ClassVar[str] = "classical"
    seeded: ClassVar[bool] = False

    N_STEPS: ClassVar[dict[str, tuple[int, ...]]] = {
        "euler": (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 32),
        "midpoint": (1, 2, 3, 4, 5, 8, 16),
        "heun": (1, 2, 3, 4, 5, 8, 16),
        "ralston": (1, 2, 3, 4, 5, 8, 16),
        "rk3": (1, 2, 3, 4),
        "rk4": (1, 2, 3, 4, 8),
        "ab2": (2, 3, 4, 5, 6, 8, 9, 12, 16, 32),
        "ab3": (2, 3, 4, 5, 6, 8, 12, 16),
        "ab4": (2, 3, 4, 5, 6, 8, 12, 16),
    }

    def runs(self) -> list[Run]:
        """Every method at every number of steps."""
        return [Run(method, n_steps) for method, numbers in self.N_STEPS.items() for n_steps in numbers]


@dataclass(frozen=True)
class Dopri5(Contender):
    """torchdiffeq's dopri5 over tolerances."""

    family: ClassVar[str] = "dopri5"
    label_format: ClassVar[str] = "dopri5"
    seeded: ClassVar[bool] = False

    def runs(self) -> list[Run]:
        """Every tolerance."""
        return [Run("dopri5", tolerance=tolerance) for tolerance in TOLERANCES]


@dataclass(frozen=True)
class Torchode(Contender):
    """torchode's adaptive solvers over tolerances."""

    family: ClassVar[str] = "torchode"
    label_format: ClassVar[str] = "torchode"
    seeded: ClassVar[bool] = False

    METHODS: ClassVar[tuple[str, ...]] = ("dopri5", "tsit5")

    def runs(self) -> list[Run]:
        """Every method at every tolerance."""
        return [Run(method, tolerance=tolerance) for method in self.METHODS for tolerance in TOLERANCES]

    def run_label(self, run: Run) -> str:
        return f"torchode {run.label}"


# ---------------------------------------------------------------------- trained by others
@dataclass(frozen=True)
class Recipe(Contender):
    """A reference recipe for hypersolvers at our budget, trained for one number of steps.

    Parameters
    ----------
    recipe : "i" or "ii"
        HyperEuler by residuals of one step size, or HyperHeun by the distance of terminal states.
    n_steps : int
    """

    recipe: str
    n_steps: int

    family: ClassVar[str] = "reference"
    label_format: ClassVar[str] = "reference ({recipe}) K={n_steps}"

    @property
    def fit_kind(self) -> str:
        return f"reference ({self.recipe})"

    @property
    def once(self) -> bool:
        return (self.recipe, self.n_steps) in (("i", 1), ("ii", 4))

    @property
    def one_step_size(self) -> bool:
        """Whether it is also run at other numbers of steps: recipe (i) as published is trained at one small step size."""
        return self.recipe == "i" and self.n_steps == max(BUDGETS)


@dataclass(frozen=True)
class PublishedRecipe(Contender):
    """A reference recipe with its published width, step size and number of iterations.

    Parameters
    ----------
    recipe : "i" or "ii"
    """

    recipe: str

    family: ClassVar[str] = "reference, published"
    label_format: ClassVar[str] = "reference ({recipe}), published budget"

    @property
    def once(self) -> bool:
        return True


@dataclass(frozen=True)
class BNS(Contender):
    """Bespoke nonstationary solvers: learned nodes and coefficients without a net."""

    n_evaluations: int

    family: ClassVar[str] = "BNS"
    label_format: ClassVar[str] = "BNS {n_evaluations} NFE"

    @property
    def fit_kind(self) -> str:
        return self.family

    @property
    def once(self) -> bool:
        return self.n_evaluations >= 8


@dataclass(frozen=True)
class TriedOnce(Contender):
    """Base class of trained rivals that no target is about."""

    @property
    def fit_kind(self) -> str:
        return self.family

    @property
    def once(self) -> bool:
        return True


@dataclass(frozen=True)
class TimeGrid(TriedOnce):
    """A classical method whose step sizes are learned."""

    n_evaluations: int

    family: ClassVar[str] = "time grid"
    label_format: ClassVar[str] = "time grid {n_evaluations} NFE"


@dataclass(frozen=True)
class FlowMap(TriedOnce):
    """A net from the input to the terminal state, past f.

    Parameters
    ----------
    size_of : "g" or "f"
        Whose multiply-accumulates it may have.
    """

    size_of: str

    family: ClassVar[str] = "flow map"
    label_format: ClassVar[str] = "flow map, size of {size_of}"


@dataclass(frozen=True)
class Torchdyn(TriedOnce):
    """torchdyn's HyperEuler, whose g reads time and state alone."""

    n_steps: int

    family: ClassVar[str] = "torchdyn"
    label_format: ClassVar[str] = "torchdyn K={n_steps}"


@dataclass(frozen=True)
class PaperSized(TriedOnce):
    """HyperEuler by residuals, its g as large as the paper's share of f."""

    n_steps: int

    family: ClassVar[str] = "paper-sized"
    label_format: ClassVar[str] = "paper-sized g K={n_steps}"

    SHARE: ClassVar[float] = 0.65
    """MACs of g over those of f: the paper has 0.5 to 0.8."""


@dataclass(frozen=True)
class FineTuned(TriedOnce):
    """Euler steps of one copy of f that is trained on (SFD); a single step is a flow map from f's weights."""

    n_steps: int

    family: ClassVar[str] = "fine-tuned"
    label_format: ClassVar[str] = "fine-tuned f K={n_steps}"


@dataclass(frozen=True)
class ScalarPredictor(TriedOnce):
    """AMED: two evaluations a step, time and length of the second from f's hidden layer."""

    n_steps: int

    family: ClassVar[str] = "AMED"
    label_format: ClassVar[str] = "AMED K={n_steps}"


FAMILIES: dict[str, type[Contender]] = {
    kind.family: kind
    for kind in (
        Ours, Classical, Dopri5, Torchode, Recipe, PublishedRecipe, BNS, TimeGrid, FlowMap, Torchdyn, PaperSized,
        FineTuned, ScalarPredictor,
    )
}  # fmt: skip
OF_OTHER_PACKAGES = (Torchode, Torchdyn)
"""They are run by another interpreter, and only where one is named."""
