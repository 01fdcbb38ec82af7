"""``joint=``: train a field so that a few steps of a cheap solver solve it too."""

from __future__ import annotations

from typing import Any, Protocol

from skorch.callbacks import Callback, PassthroughScoring
from torch import Tensor

from ..numerics.methods import resolve_base_solver
from ..numerics.units import state_units
from .given_rows import Inputs
from .nets import JointOutput
from .solver_control import Rung, TrainingSolver, is_auto, is_dopri5, is_hypersolved

_TIMES_FINER, _FEWEST = 2, 4
"""A solver of the training is taken for the truth if it evaluates f so many times as often, and so often at least."""


class JointSettings(Protocol):
    """Settings of a training that may be joint."""

    @property
    def joint(self) -> float: ...
    @property
    def base_solver(self) -> Any: ...
    @property
    def n_steps(self) -> int: ...


class JointLoss:
    r"""How far ``n_steps`` steps of a base solver end from the training's own solve.

    .. math:: \ell_j = \operatorname{mean} \big| (\hat z_K - z(S)) / u \big|^2

    over rows and features, with u the size of the states z(S) as the library measures it. Both solves start from the
    same rows, and gradients go through both: the field may move its solution, or make it simpler to solve.

    Parameters
    ----------
    solver : TrainingSolver
        Solves, and counts.
    settings : JointSettings
        With ``joint`` > 0.
    """

    def __init__(self, solver: TrainingSolver, settings: JointSettings):
        self.solver, self.weight = solver, float(settings.joint)
        self.mesh = solver.mesh_of(joint_rung(settings))

    def __call__(self, x: Inputs, states: Tensor) -> Tensor:
        """Return the loss, without its weight.

        Parameters
        ----------
        x : Tensor or GivenRows
            Rows, as the solver takes them.
        states : Tensor
            Their terminal states by the training's solver.
        """
        ode = self.solver.ode
        found = self.solver.by_mesh(self.mesh, x)
        # The size is measured by batch and has no gradient. Divided first: squares of small states underflow.
        return ((found - states) / state_units(states, ode.n_unitless)).square().mean()

    def beside(self, output: Tensor, x: Inputs, states: Tensor) -> JointOutput:
        """Return an output of the module with this loss beside it, for the net to add."""
        return JointOutput(output, self(x, states), self.weight)


def joint_rung(settings: JointSettings) -> Rung:
    """Return the solver that a joint training makes fields for."""
    return Rung(settings.base_solver, settings.n_steps)


def make_joint_loss(solver: TrainingSolver, settings: Any) -> JointLoss | None:
    """Return the loss of a joint training; None where ``joint`` is 0."""
    return JointLoss(solver, settings) if settings.joint > 0 else None


def joint_callbacks(settings: JointSettings) -> list[tuple[str, Callback]]:
    """Return the callbacks of a joint training: one that records the loss of an epoch as ``joint_loss``."""
    return [("joint_loss", PassthroughScoring(name="joint_loss", on_train=True))] if settings.joint > 0 else []


def count_fewest(settings: JointSettings) -> int:
    """Return the fewest evaluations of a solve that "auto" may train through: it is the truth of the joint loss."""
    return max(_FEWEST, _TIMES_FINER * joint_rung(settings).n_evaluations) if settings.joint > 0 else 0


def check_joint(
    joint: float, solver: Any, base_solver: Any, refit_every: int | None = None, *, between: bool = False
) -> None:
    """Refuse a joint training without a truth, an unknown base solver, and refits of nothing, before any work.

    With ``between``, states before the end of the span are trained on, which neither ``joint`` nor "hypersolved" does.
    """
    if between and (joint > 0 or is_hypersolved(solver)):
        what = f"joint={joint!r}" if joint > 0 else f"solver={solver!r}"
        raise ValueError(
            f"t_eval with {what}, which is about states at the end of t_span alone. Set joint=0.0 and "
            "solver='dopri5' or 'auto', or leave t_eval out."
        )
    try:
        resolve_base_solver(base_solver)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"base_solver={base_solver!r} is no fixed-step solver that a field can be trained for: {error}"
        ) from error
    if refit_every is not None and not is_hypersolved(solver):
        raise ValueError(
            f"refit_every={refit_every!r} with solver={solver!r}: only solver='hypersolved' has a correction to refit. "
            "Set refit_every=None."
        )
    if joint > 0 and not (is_dopri5(solver) or is_auto(solver)):
        raise ValueError(
            f"joint={joint!r} with solver={solver!r}: joint training compares base_solver's n_steps steps with an "
            "accurate solve. Set solver='dopri5' or 'auto', or joint=0.0."
        )
