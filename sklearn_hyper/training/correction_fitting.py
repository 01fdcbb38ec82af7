"""Fit a correction: residual fitting, trajectory fitting and fine-tuning through the unrolled solver."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..modules.correction_nets import MLPCorrectionNet, flatten_samples
from ..modules.correction_specs import auto_correction
from ..modules.corrections import BoundedCorrection, fit_bounded_correction
from ..modules.neural_ode import NeuralODE
from ..modules.seeding import own_generator, seeded
from ..modules.solver_binding import bind_solver, solver_family
from ..numerics.base_solvers import BaseSolver, startup_methods
from ..numerics.cost import count_macs
from ..numerics.residuals import Residual, in_own_units
from ..numerics.row_errors import numbered_rows, refuse_undefined
from ..numerics.solve import solver_mesh, time_tensor
from .fit_sets import FitSets, residual_sets, solve_ends, state_sets
from .fit_settings import FINETUNE_LR, FitSettings
from .losses import StateLoss, output_loss, terminal_loss, trajectory_loss
from .nets import BestWeights, FreshStages, LossNet, TrainingNet, assemble_callbacks, cosine_schedule, draw_seed
from .objectives import (
    Curriculum,
    Objective,
    ReferenceRows,
    Solve,
    TerminalErrors,
    UnrolledSolves,
    base_errors,
    check_overflow,
    stack_blocks,
)
from .residual_sets import (
    MAX_BLOCKS,
    Exact,
    Step,
    StepSizes,
    deal_solvers,
    plan_steps,
)

_TINY = 1e-30
_PLAIN_LAYERS = ("torch.nn.modules.activation", "torch.nn.modules.container")
_VALID_ROWS, _VALID_BLOCKS, _VALID_SOLVES = 256, 8, 8
_MAC_SHARE = 0.1
_ROUNDING = 1e-6
"""By less than this no correction is better than its base solver."""


@dataclass
class FittedCorrection:
    """The product of :func:`fit_correction`."""

    correction: BoundedCorrection | None
    """None where the base solver alone is better on held-out rows, or its largest error there is smaller."""
    net: TrainingNet
    history: list[dict[str, Any]]
    delta: dict[int, dict[str, float]]
    errors: dict[int, dict[str, float]]
    valid_loss: float
    """The best, of the weights that training started from, too; 1 is the base solver."""
    relative_errors: dict[str, float]
    """Mean error on held-out rows as a share of the mean norm: of what, and how much."""
    fitted_range: tuple[float, float]
    interrupted: bool


def fit_correction(
    neural_ode: NeuralODE,
    x: Tensor,
    solver: BaseSolver,
    settings: FitSettings,
    warm: BoundedCorrection | None = None,
    ends: Tensor | None = None,
) -> FittedCorrection:
    """Fit g for a frozen Neural ODE and a base solver.

    Parameters
    ----------
    neural_ode : NeuralODE
        In eval mode, parameters frozen, on ``settings.device``.
    x : Tensor of shape (n, ...)
        Inputs; their reference trajectories are what g learns from. Some are held out for validation.
    solver : BaseSolver
    settings : FitSettings
    warm : BoundedCorrection, optional
        Start from this one instead of a new one.
    ends : Tensor, optional
        What :func:`solve_ends` gives, where that is known.

    Returns
    -------
    FittedCorrection
        Also after Ctrl-C in training, with ``interrupted`` set and the best weights so far.
    """
    seed = draw_seed(settings.random_state)
    rng = np.random.default_rng(seed)
    sizes = StepSizes.from_parameters(settings.n_steps, settings.fit_n_steps)
    times, pairs = plan_steps(solver, neural_ode.t_span, settings.n_steps, sizes, rng)
    family = solver_family(settings.correction, solver)
    steps = deal_solvers(pairs, family, MAX_BLOCKS, rng)
    # Rows are shuffled for the solve of all, so that a cached one serves every random_state.
    shuffled = torch.from_numpy(rng.permutation(len(x))).to(settings.device)
    n_valid = max(1, round(settings.validation_fraction * len(x)))
    held_out, fitted = shuffled[: min(n_valid, _VALID_ROWS)], shuffled[n_valid:]
    settings = settings.over(solver)
    if settings.trains_on("residual"):
        sets = residual_sets(neural_ode, x, times, steps, held_out, fitted, settings)
    else:
        if ends is None and not settings.needs_mesh(solver):
            ends = solve_ends(neural_ode, x, settings)
        sets = state_sets(neural_ode, x, times, steps, held_out, fitted, settings, ends)
    valid = sets.valid
    solves = [Solve(member, k) for member in family for k in sizes.steps]
    with numbered_rows(torch.cat([fitted, held_out]).tolist(), len(x)):
        _check_bases(neural_ode, sets, solves, settings)
    errors = TerminalErrors(neural_ode, valid, Solve(solver, settings.n_steps))
    trained, net, valid_loss = _train(neural_ode, solver, settings, solves, sets, errors, warm, seed)
    keeps = not errors.guarded_share(trained).isinf() and (valid_loss < 1 - _ROUNDING or warm is not None)
    correction = trained if keeps else None
    return FittedCorrection(
        correction=correction,
        net=net,
        history=_history(net, settings.stages()),
        delta=_delta(correction, sets.exact, solver, valid, sizes.steps),
        errors=errors.table(correction, sizes.steps),
        valid_loss=valid_loss,
        relative_errors=errors.relative(correction, settings.rtol),
        fitted_range=(sizes.low, sizes.high),
        interrupted=net.interrupted_,
    )


def _train(
    neural_ode: NeuralODE,
    solver: BaseSolver,
    settings: FitSettings,
    solves: Sequence[Solve],
    sets: FitSets,
    errors: TerminalErrors,
    warm: BoundedCorrection | None,
    seed: int,
) -> tuple[BoundedCorrection, TrainingNet, float]:
    """The trained correction, its net, and the best loss on held-out rows."""
    train = sets.train
    correction = _start_correction(neural_ode, solver, settings, sets, warm, seed)
    if isinstance(correction.net, MLPCorrectionNet):
        train.stacks = stack_blocks(train.blocks)
    stages = settings.stages()
    unrolled = {kind: UnrolledSolves(neural_ode, _state_loss(kind, neural_ode)) for _, kind in stages}
    best = BestWeights(_validation(neural_ode, stages[-1][1], unrolled, solves, sets.valid, errors))
    generator = own_generator(seed)
    curriculum = Curriculum(train, settings.batch_size, stages, solves, generator)
    net = _build_net(Objective(correction, train, neural_ode.control(train.x), unrolled), curriculum, best, settings)
    with nullcontext() if _draws_nothing(correction, settings) else seeded(seed, settings.device):
        net.train(curriculum, None, generator)
    return net.module_.release().eval().requires_grad_(False), net, best.best_loss_


def _start_correction(
    neural_ode: NeuralODE,
    solver: BaseSolver,
    settings: FitSettings,
    sets: FitSets,
    warm: BoundedCorrection | None,
    seed: int,
) -> BoundedCorrection:
    """The correction that training starts from: a new one, or a copy of an earlier one; lets go of the scales' blocks."""
    scales = sets.scales
    if warm is None:
        blocks = [(block.residual, block.solver) for block in scales.blocks]
        with seeded(seed, settings.device):  # layers initialise themselves by the global generator
            correction = build_correction(settings.correction, neural_ode, solver, blocks, neural_ode.control(scales.x))
    else:
        correction = copy.deepcopy(warm.for_solver(solver)).to(sets.train.states).requires_grad_(True)
    if scales is not sets.train:
        scales.blocks.clear()
    return correction


def _validation(
    neural_ode: NeuralODE,
    kind: str,
    unrolled: Mapping[str, UnrolledSolves],
    solves: Sequence[Solve],
    valid: ReferenceRows,
    errors: TerminalErrors,
) -> Callable[[Objective], float]:
    """What tells the best weights: the last stage's loss on held-out rows."""
    checked = _spread(solves, _VALID_SOLVES)

    def validate(objective: Objective) -> float:
        """A geometric mean over steps and base solvers; 1 is the base solver.

        Infinite where the largest error there exceeds the base solver's: such weights are not to be kept.
        """
        share = errors.guarded_share(objective.correction)
        if share.isinf():
            return math.inf
        with torch.no_grad():
            if kind == "residual":
                some = valid.blocks[:: max(1, len(valid.blocks) // _VALID_BLOCKS)]
                control = neural_ode.control(valid.x)
                losses = [block.share(objective.correction, slice(None), control) for block in some]
            else:
                losses = [
                    share
                    if (kind, solve) == ("terminal", errors.guarded)  # solved already
                    else unrolled[kind].share(valid, slice(None), solve, objective.correction)
                    for solve in checked
                ]
        return float((torch.stack(losses) + _TINY).log().mean().exp())

    return validate


def _build_net(objective: Objective, curriculum: Curriculum, best: BestWeights, settings: FitSettings) -> LossNet:
    """A skorch net around the training module, not yet trained; its learning rate starts anew with every stage."""
    stage_ends = [end for end, _ in curriculum.stages]
    schedule = cosine_schedule(len(curriculum), stage_ends, [1.0, FINETUNE_LR][: len(stage_ends)])
    net = LossNet(
        objective,
        criterion=nn.Identity,
        optimizer=settings.optimizer,
        lr=settings.lr,
        max_epochs=settings.max_epochs,
        train_split=None,
        iterator_train=DataLoader,
        iterator_train__batch_size=None,
        callbacks=[
            ("fresh_stages", FreshStages(stage_ends)),
            *assemble_callbacks(best, settings.callbacks, schedule, "fitting correction", settings.verbose),
        ],
        verbose=settings.verbose,
        device=settings.device,
    )
    return net.initialize()


def _draws_nothing(correction: BoundedCorrection, settings: FitSettings) -> bool:
    """Whether training is all ours, and so leaves torch's global generators alone: other fits may then train meanwhile."""
    ours = ("sklearn_hyper.", "torch.nn.modules.linear", "torch.nn.modules.conv", *_PLAIN_LAYERS)
    modules = [type(module) for module in correction.modules()]
    return (
        not settings.callbacks
        and settings.optimizer.__module__.startswith("torch.optim.")
        and all(kind.__module__.startswith(ours) and kind is not nn.RReLU for kind in modules)
    )


def _check_bases(neural_ode: NeuralODE, sets: FitSets, solves: Sequence[Solve], settings: FitSettings) -> None:
    """Refuse rows of training and held-out sets from which losses are not finite: a base solver overflows, or outputs are nan."""
    needs_outputs, both = settings.trains_on("output"), (sets.train, sets.valid)
    what = "finetune='output' needs outputs, and the output map is not finite at states that {} reaches"
    if needs_outputs:
        ends = torch.cat([data.states[-1] for data in both])
        with torch.no_grad():
            expected = torch.cat([neural_ode.output_map(z) for z in ends.split(settings.batch_size)])
        refuse_undefined(expected, what.format("dopri5"))
    for one in solves:
        outputs: list[Tensor] | None = [] if needs_outputs else None
        check_overflow(
            torch.cat([base_errors(neural_ode, data, one, outputs) for data in both]), one.solver.name, one.steps
        )
        if outputs:
            refuse_undefined(
                torch.cat(outputs), what.format(f"base_solver={one.solver.name!r} with n_steps={one.steps}")
            )


def _spread(options: Sequence[Any], at_most: int) -> list[Any]:
    """Evenly spread ones, the first and the last among them."""
    chosen = np.linspace(0, len(options) - 1, min(len(options), at_most)).round().astype(int)
    return [options[i] for i in chosen]


def _state_loss(kind: str, neural_ode: NeuralODE) -> StateLoss:
    if kind == "output":
        return output_loss(neural_ode.output_map)
    return trajectory_loss if "trajectory" in kind else terminal_loss


def build_correction(
    spec: Any,
    neural_ode: NeuralODE,
    solver: BaseSolver,
    blocks: Sequence[tuple[Residual, BaseSolver]],
    x: Tensor | None,
) -> BoundedCorrection:
    """Build (or copy) the net for a base solver, size it by the field's MACs, set its scales and bound it."""
    residuals = [residual for residual, _ in blocks]
    # Start-up steps of a multistep method have fewer stages.
    sample = max(residuals, key=lambda residual: len(residual.stages))
    if isinstance(spec, nn.Module):
        net = copy.deepcopy(spec).to(sample.z).requires_grad_(True)
        return fit_bounded_correction(bind_solver(net, solver), residuals)
    one = sample.z[:1]
    arguments = (one,) if x is None else (one, x[:1])
    start = time_tensor(neural_ode.t_span[0], one, neural_ode.t_span)
    macs = count_macs(neural_ode.vector_field, start, *arguments)
    spec = auto_correction(sample.z) if isinstance(spec, str) else spec
    # Asked of specs only where it matters: a user's own need not know of multistep methods.
    startup = {"reads_startup": True} if startup_methods(solver) else {}
    net = spec.build(sample, x, _MAC_SHARE * macs, **startup).to(sample.z)
    net.set_scales(residuals, x, neural_ode.t_span, [member for _, member in blocks])
    return fit_bounded_correction(bind_solver(net, solver), residuals)


def _delta(
    correction: nn.Module | None, exact: Exact, solver: BaseSolver, data: ReferenceRows, fitted_steps: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Largest and mean ||g - R|| on held-out states, for every fitted K; start-up steps' in units of the others' order."""
    control = data.x if exact.neural_ode.data_controlled else None
    delta = {}
    for k in fitted_steps:
        indices = data.indices(solver_mesh(solver, exact.neural_ode.t_span, k))
        errors = []
        for i, j in pairwise(indices):
            (r,) = exact.blocks(data.times, [Step(i, j, solver)], data.states.dtype)
            missing = r.target
            if correction is not None:
                with torch.no_grad():
                    missing = missing - correction(r.eps, r.time(), r.z, r.stages, control)
            missing, unit = in_own_units(flatten_samples(missing))
            norms = torch.linalg.vector_norm(missing, dim=1) * unit
            errors.append(norms * abs(r.eps) ** (r.order - solver.order))
        every = torch.cat(errors)
        delta[k] = {"max": float(every.max()), "mean": float(every.mean())}
    return delta


def _history(net: TrainingNet, stages: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """One row an epoch, with the stage it belongs to."""
    keys = ("epoch", "train_loss", "valid_loss", "dur")
    rows = []
    for row in net.history:
        kind = next((kind for end, kind in stages if row["epoch"] <= end), stages[-1][1])
        rows.append({"stage": kind, **{key: float(row[key]) for key in keys if key in row}, "epoch": row["epoch"]})
    return rows
