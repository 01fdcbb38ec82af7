"""The problems: which fields are solved, by name and kind. What they are made of is in ``loading``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sklearn_hyper.datasets import DENSITIES


@dataclass(frozen=True)
class Problem:
    """A field and rows to solve it from.

    Parameters
    ----------
    name : str
    family : str
        Problems of a family share a panel of the picture.
    seconds : three floats
        CPU seconds that a rival of up to three, up to five and more evaluations of f may train for: about what our
        default fits of two, four and eight evaluations take on a quiet core.
    compared : bool
        Whether our alternatives to the default, time grids and torchdyn are tried on it: one problem of a family.
    once : bool
        One seed for everything, as it takes long.
    """

    name: str
    family: str
    seconds: tuple[float, float, float] = (16.0, 25.0, 40.0)
    compared: bool = False
    once: bool = False

    has_macs: ClassVar[bool] = True
    """False where f is a formula: solvers are compared at equal evaluations then."""
    of_images: ClassVar[bool] = False
    takes_nets: ClassVar[bool] = True
    """Whether rivals' nets and flow maps are made for its states: vectors or images."""
    takes_row_times: ClassVar[bool] = True
    """Whether rows may have times of their own: torch.func.vmap of f."""

    @property
    def timed(self) -> bool:
        """Whether solvers are timed on it."""
        return self.compared

    @property
    def group(self) -> str:
        """Problems of a group share models that are trained, and are prepared in one process."""
        return self.name

    def seconds_for(self, n_evaluations: int) -> float:
        """CPU seconds that a rival of so many evaluations may train for."""
        return self.seconds[sum(n_evaluations > most for most in (3, 5))]


@dataclass(frozen=True)
class FlowProblem(Problem):
    """Sampling from the flow of a two-dimensional density."""

    density: str = ""
    objective: str = ""

    @property
    def group(self) -> str:
        return self.density  # the likelihood's flow is trained from the flow-matching one


@dataclass(frozen=True)
class TableProblem(Problem):
    """Sampling from the flow of a real table."""


@dataclass(frozen=True)
class SystemProblem(Problem):
    """A formula, from rows that are uniform in a box.

    Parameters
    ----------
    half_width : tuple of float
        Of the box.
    """

    half_width: tuple[float, ...] = ()

    has_macs: ClassVar[bool] = False


@dataclass(frozen=True)
class ImageProblem(Problem):
    """The field of an image classifier.

    Parameters
    ----------
    n_rows : four ints
        Images to fit on, to choose on, to report on and of more contrast: fewer than elsewhere, as they cost more.
    """

    n_rows: tuple[int, int, int, int] = (0, 0, 0, 0)

    of_images: ClassVar[bool] = True

    @property
    def timed(self) -> bool:
        return True


@dataclass(frozen=True)
class AttentionProblem(Problem):
    """A transformer block as the field of a classifier: digits as eight tokens, one for each row of pixels."""

    takes_nets: ClassVar[bool] = False
    takes_row_times: ClassVar[bool] = False


@dataclass(frozen=True)
class ImageFlowProblem(Problem):
    """Sampling digits of a given class from a flow whose field is a small U-Net."""

    takes_nets: ClassVar[bool] = False


def _flows(objective: str, family: str) -> list[FlowProblem]:
    return [
        FlowProblem(f"{density} {objective}", family, compared=density == "moons", density=density, objective=objective)
        for density in DENSITIES
    ]


PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        SystemProblem("pendulum", "physics", half_width=(5.0, 5.0, 10.0)),
        SystemProblem("van_der_pol", "physics", compared=True, half_width=(2.0, 2.0)),
        SystemProblem("forced_van_der_pol", "physics", half_width=(2.0, 2.0)),
        SystemProblem("forced_oscillator", "physics", half_width=(2.0, 2.0)),
        *_flows("flow_matching", "flow matching"),
        *_flows("likelihood", "FFJORD"),
        TableProblem("wine", "tabular flow", (16.0, 30.0, 55.0), compared=True),
        TableProblem("uci_airfoil", "tabular flow"),
        AttentionProblem("digits_tokens", "images", (45.0, 80.0, 150.0)),
        ImageFlowProblem("digits_flow", "images", (45.0, 80.0, 150.0), once=True),
        ImageProblem("digits", "images", (45.0, 80.0, 150.0), compared=True, n_rows=(1000, 150, 450, 200)),
        ImageProblem("mnist", "images", (75.0, 135.0, 250.0), once=True, n_rows=(600, 100, 500, 200)),
    )
}
"""All problems by name, those that cost least first."""
