"""Fit a correction: residual fitting, trajectory fitting and fine-tuning through the unrolled solver."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from joblib import Memory
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..modules.correction_nets import MLPCorrectionNet, flatten_samples
from ..modules.correction_specs import auto_correction
from ..modules.corrections import BoundedCorrection, fit_bounded_correction
from ..modules.neural_ode import NeuralODE
from ..modules.solver_binding import bind_solver, solver_family
from ..numerics.base_solvers import BaseSolver, startup_methods
from ..numerics.cost import count_macs
from ..numerics.nonstationary import Nonstationary
from ..numerics.residuals import Residual, in_own_units
from ..numerics.solve import solver_mesh, time_tensor
from .losses import StateLoss, output_loss, terminal_loss, trajectory_loss
from .nets import BestWeights, FreshStages, LossNet, TrainingNet, assemble_callbacks, cosine_schedule, draw_seed, seeded
from .objectives import (
    Block,
    Curriculum,
    Objective,
    ReferenceRows,
    Solve,
    TerminalErrors,
    UnrolledSolves,
    check_base_solve,
    check_overflow,
    span_units,
    stack_blocks,
)
from .references import mesh_times, solve_references
from .residual_sets import MAX_BLOCKS, Exact, Step, StepSizes, conditioned_blocks, deal_solvers, plan_steps

_TINY = 1e-30
_MEMORY_BUDGET = 2**30
_FINETUNE_SHARE, _FINETUNE_LR = 0.6, 0.5
_VALID_ROWS, _VALID_BLOCKS, _VALID_SOLVES = 256, 8, 8
_MAC_SHARE = 0.1
_ROUNDING = 1e-6
"""By less than this no correction is better than its base solver."""


@dataclass(frozen=True)
class FitSettings:
    """What a fit of a correction is told; names and meaning are those of ``HypersolverRegressor``."""

    n_steps: int
    fit_n_steps: int | tuple[int, int] | None
    correction: Any
    loss: str
    finetune: str | None
    rtol: float
    atol: float | None
    max_epochs: int
    lr: float
    batch_size: int
    optimizer: Any
    callbacks: Any
    validation_fraction: float
    memory: Memory | str | None
    device: str
    n_jobs: int | None
    random_state: Any
    verbose: int

    def stages(self) -> list[tuple[int, str]]:
        """(last epoch, kind) of each stage; the two split ``max_epochs``."""
        if self.finetune is None or self.max_epochs == 1:
            return [(self.max_epochs, self.loss)]
        first = min(self.max_epochs - 1, max(1, round((1 - _FINETUNE_SHARE) * self.max_epochs)))
        return [(first, self.loss), (self.max_epochs, self.finetune)]


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


def max_rows(state_numel: int, n_stages: int, itemsize: int, steps: Sequence[int]) -> int:
    """Rows whose reference states and residual blocks fit one GiB."""
    n_times = len(mesh_times((0.0, 1.0), steps))
    per_row = state_numel * itemsize * (2 * n_times + MAX_BLOCKS * (n_stages + 2))
    return max(2, _MEMORY_BUDGET // per_row)


def fit_correction(
    neural_ode: NeuralODE,
    x: Tensor,
    solver: BaseSolver,
    settings: FitSettings,
    warm: BoundedCorrection | None = None,
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

    Returns
    -------
    FittedCorrection
        Also after Ctrl-C in training, with ``interrupted`` set and the best weights so far.
    """
    seed = draw_seed(settings.random_state)
    rng = np.random.default_rng(seed)
    sizes = StepSizes.from_parameters(settings.n_steps, settings.fit_n_steps)
    times, pairs = plan_steps(solver, neural_ode.t_span, settings.n_steps, sizes, rng)
    if isinstance(solver, Nonstationary) and settings.finetune is not None and settings.loss == "residual":
        # Learned coefficients let the states between leave the trajectory, which residuals would force them back to.
        settings = replace(settings, loss=settings.finetune, finetune=None, lr=_FINETUNE_LR * settings.lr)

    def solve(**how: Any) -> Tensor:
        return solve_references(
            neural_ode, x, times, memory=settings.memory, n_jobs=settings.n_jobs,
            device=settings.device, verbose=settings.verbose, **how,
        )  # fmt: skip

    family = solver_family(settings.correction, solver)
    steps = deal_solvers(pairs, family, MAX_BLOCKS, rng)
    on_device = x.to(settings.device)
    states, blocks, exact = conditioned_blocks(
        neural_ode, times, on_device, steps, solve, rtol=settings.rtol, atol=settings.atol
    )
    for block, step in zip(blocks, steps, strict=True):
        check_overflow(block.target, step.solver.name, settings.n_steps)
    # Rows are shuffled after the solve, so that a cached one serves every random_state.
    shuffled = torch.from_numpy(rng.permutation(len(x))).to(settings.device)
    n_valid = max(1, round(settings.validation_fraction * len(x)))
    held_out, fitted = shuffled[: min(n_valid, _VALID_ROWS)], shuffled[n_valid:]
    solvers, unit = [step.solver for step in steps], span_units(neural_ode, states)
    held_out_blocks = [Block.of(b, s, held_out, unit) for b, s in zip(blocks, solvers, strict=True)]
    valid = ReferenceRows(on_device[held_out], times, states[:, held_out], held_out_blocks, unit)
    # Popped one by one, since a block and its copy need not both stay in memory.
    own = [Block.of(blocks.pop(0), s, fitted, unit) for s in solvers]
    train = ReferenceRows(on_device[fitted], times, states[:, fitted], own, unit)
    exact_valid = exact.rows(held_out)
    del states, exact  # the sets hold copies of their rows
    with seeded(seed, settings.device):
        solves = [Solve(member, k) for member in family for k in sizes.steps]
        for data in (train, valid):
            for one in solves:
                check_base_solve(neural_ode, data, one)
        errors = TerminalErrors(neural_ode, valid, Solve(solver, settings.n_steps))
        trained, net, valid_loss = _train(neural_ode, solver, settings, solves, train, valid, errors, warm)
        keeps = not errors.guarded_share(trained).isinf() and (valid_loss < 1 - _ROUNDING or warm is not None)
        correction = trained if keeps else None
    return FittedCorrection(
        correction=correction,
        net=net,
        history=_history(net, settings.stages()),
        delta=_delta(correction, exact_valid, solver, valid, sizes.steps),
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
    train: ReferenceRows,
    valid: ReferenceRows,
    errors: TerminalErrors,
    warm: BoundedCorrection | None,
) -> tuple[BoundedCorrection, TrainingNet, float]:
    """The trained correction, its net, and the best loss on held-out rows."""
    control = neural_ode.control(train.x)
    if warm is None:
        blocks = [(block.residual, block.solver) for block in train.blocks]
        correction = build_correction(settings.correction, neural_ode, solver, blocks, control)
    else:
        correction = copy.deepcopy(warm.for_solver(solver)).to(train.states).requires_grad_(True)
    if isinstance(correction.net, MLPCorrectionNet):
        train.stacks = stack_blocks(train.blocks)
    stages = settings.stages()
    unrolled = {kind: UnrolledSolves(neural_ode, _state_loss(kind, neural_ode)) for _, kind in stages}

    checked = _spread(solves, _VALID_SOLVES)

    def validate(objective: Objective) -> float:
        """The last stage's loss on held-out rows, a geometric mean over steps and base solvers; 1 is the base solver.

        Infinite where the largest error there exceeds the base solver's: such weights are not to be kept.
        """
        kind = stages[-1][1]
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

    curriculum = Curriculum(train, settings.batch_size, stages, solves)
    best = BestWeights(validate)
    peaks = [1.0, _FINETUNE_LR][: len(stages)]
    schedule = cosine_schedule(len(curriculum), [end for end, _ in stages], peaks)
    net = LossNet(
        Objective(correction, train, control, unrolled),
        criterion=nn.Identity,
        optimizer=settings.optimizer,
        lr=settings.lr,
        max_epochs=settings.max_epochs,
        train_split=None,
        iterator_train=DataLoader,
        iterator_train__batch_size=None,
        callbacks=[
            ("fresh_stages", FreshStages([end for end, _ in stages])),
            *assemble_callbacks(best, settings.callbacks, schedule, "fitting correction", settings.verbose),
        ],
        verbose=settings.verbose,
        device=settings.device,
    )
    net.initialize()
    net.partial_fit(curriculum, None)
    best.restore(net)
    return net.module_.release().eval().requires_grad_(False), net, best.best_loss_


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
        steps = [Step(i, j, solver) for i, j in pairwise(indices)]
        for r in exact.blocks(data.times, steps, data.states.dtype):
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
