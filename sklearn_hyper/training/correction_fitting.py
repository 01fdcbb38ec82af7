"""Fit a correction: residual fitting, trajectory fitting and fine-tuning through the unrolled solver."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from joblib import Memory
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ..modules.corrections import BoundedCorrection, auto_correction, fit_bounded_correction
from ..modules.neural_ode import NeuralODE
from ..numerics.base_solvers import BaseSolver
from ..numerics.cost import count_macs
from ..numerics.residuals import Residual
from ..numerics.solve import iterate_states, uniform_grid
from .losses import StateLoss, mean_norm, output_loss, residual_loss, terminal_loss, trajectory_loss
from .nets import BestWeights, TrainingNet, assemble_callbacks, cosine_schedule, draw_seed, seeded
from .references import mesh_times, solve_references
from .residual_sets import StepSizes, choose_steps, conditioned_blocks, residual_blocks, select_rows

_TINY = 1e-30
_MAX_BLOCKS = 48
_MEMORY_BUDGET = 2**30
_FINETUNE_SHARE = 0.4
_MIXED_STEP_SIZES = 4
_VALID_ROWS = 256
_VALID_BLOCKS = 8


@dataclass(frozen=True)
class FitSettings:
    """What a fit of a correction is told; names and meaning are those of ``HypersolverRegressor``."""

    n_steps: int
    fit_n_steps: int | tuple[int, int] | None
    correction: Any
    loss: str
    finetune: str | None
    rtol: float
    atol: float
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


@dataclass
class FittedCorrection:
    """The product of :func:`fit_correction`."""

    correction: BoundedCorrection
    net: TrainingNet
    history: list[dict[str, Any]]
    delta: dict[int, dict[str, float]]
    fitted_range: tuple[float, float]
    interrupted: bool = False


@dataclass(frozen=True)
class _Batch:
    """What one optimizer step learns from: rows of residual blocks, solves of K steps, or both."""

    rows: Tensor
    parts: list[tuple[Tensor, _Block]]
    steps: int | None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class _Block:
    """A residual block and its unit: the mean norm of its targets, which is the loss of the base solver."""

    residual: Residual
    unit: float

    def loss(self, correction: nn.Module, rows: Any, control: Tensor | None) -> Tensor:
        x = None if control is None else control[rows]
        return residual_loss(correction, select_rows(self.residual, rows), x) / self.unit


@dataclass
class _States:
    """Reference states of some rows, on the mesh shared by all."""

    x: Tensor
    times: tuple[float, ...]
    states: Tensor
    _index: dict[float, int] = field(init=False)

    def __post_init__(self) -> None:
        self._index = {round(time, 12): i for i, time in enumerate(self.times)}

    def on_grid(self, grid: Sequence[float], rows: Any = slice(None)) -> Tensor:
        """States at the times of a uniform grid that the mesh contains."""
        return torch.stack([self.states[self._index[round(s, 12)]][rows] for s in grid])


class _Solves:
    """Unrolled solves of a fixed Neural ODE from given rows, and their errors in the base solver's units."""

    def __init__(self, neural_ode: NeuralODE, solver: BaseSolver, loss: StateLoss, n_unit_rows: int = 256):
        self.neural_ode, self.solver, self.loss, self.n_unit_rows = neural_ode, solver, loss, n_unit_rows
        self._units: dict[int, float] = {}

    def grid(self, steps: int) -> tuple[float, ...]:
        return uniform_grid(self.neural_ode.t_span, steps)

    def error(self, data: _States, rows: Any, steps: int, correction: nn.Module | None) -> Tensor:
        grid = self.grid(steps)
        reference = data.on_grid(grid, rows) if self.loss is trajectory_loss else data.states[[0, -1]][:, rows]
        x = None if not self.neural_ode.data_controlled else data.x[rows]
        z0 = reference[0]
        states = [z0, *iterate_states(self.neural_ode.vector_field, z0, grid, self.solver, correction, x)]
        return self.loss(torch.stack(states if self.loss is trajectory_loss else [z0, states[-1]]), reference)

    def share(self, data: _States, rows: Any, steps: int, correction: nn.Module) -> Tensor:
        """The error as a share of the base solver's on the first rows of ``data``."""
        if steps not in self._units:
            with torch.no_grad():
                unit = self.error(data, slice(0, self.n_unit_rows), steps, None)
            self._units[steps] = max(float(unit), _TINY)
        return self.error(data, rows, steps, correction) / self._units[steps]


class _Curriculum(IterableDataset[tuple[_Batch, int]]):
    """Batches of every epoch: each epoch is one pass over the training rows.

    A residual batch mixes a few step sizes, one a part of its rows, because with one alone the gradient's noise between
    batches doubles the error reached in equal time. A solve has one number of steps.
    """

    def __init__(
        self, n_rows: int, batch_size: int, stages: Sequence[tuple[int, str]], blocks: list[_Block], steps: tuple[int, ...]
    ):  # fmt: skip
        self.n_rows, self.batch_size, self.stages, self.blocks, self.steps = n_rows, batch_size, stages, blocks, steps
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def __iter__(self) -> Iterator[tuple[_Batch, int]]:
        kind = next((kind for end, kind in self.stages if self.epoch < end), self.stages[-1][1])
        self.epoch += 1
        for rows in torch.randperm(self.n_rows).split(self.batch_size):
            parts = [(part, self._draw(self.blocks)) for part in self._split(rows)] if "residual" in kind else []
            yield _Batch(rows, parts, None if kind == "residual" else self._draw(self.steps)), 0

    @staticmethod
    def _split(rows: Tensor) -> Sequence[Tensor]:
        return rows.chunk(max(1, min(_MIXED_STEP_SIZES, len(rows) // 8)))

    @staticmethod
    def _draw(options: Sequence[Any]) -> Any:
        return options[int(torch.randint(len(options), ()))]


class _Objective(nn.Module):
    """The training module: its parameters are the correction's alone, its output is the loss."""

    correction: nn.Module

    def __init__(self, correction: nn.Module, data: _States, solves: _Solves, control: Tensor | None):
        super().__init__()
        self.correction = correction
        # In a tuple, the frozen field stays out of parameters(), state_dict() and train().
        self._frozen = (data, solves, control)

    def forward(self, batch: _Batch) -> Tensor:
        data, solves, control = self._frozen
        losses = [block.loss(self.correction, rows, control) for rows, block in batch.parts]
        total = [torch.stack(losses).mean()] if losses else []
        if batch.steps is not None:
            total.append(solves.share(data, batch.rows, batch.steps, self.correction))
        return torch.stack(total).sum()


class _CorrectionNet(TrainingNet):
    """skorch's loop over batches that are objects of ours, already on their device."""

    def infer(self, x: _Batch, **fit_params: Any) -> Tensor:
        return self.module_(x)

    def get_loss(self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False) -> Tensor:
        return y_pred


def _state_loss(kind: str, neural_ode: NeuralODE) -> StateLoss:
    if kind == "output":
        return output_loss(neural_ode.output_map)
    return trajectory_loss if "trajectory" in kind else terminal_loss


def build_correction(
    spec: Any, neural_ode: NeuralODE, blocks: Sequence[Residual], x: Tensor | None
) -> BoundedCorrection:
    """Build (or copy) the net, size it by the field's MACs, set its scales and bound it."""
    sample = blocks[0]
    if isinstance(spec, nn.Module):
        net = copy.deepcopy(spec).to(sample.z)
    else:
        one = sample.z[:1]
        arguments = (one,) if x is None else (one, x[:1])
        macs = count_macs(neural_ode.vector_field, one.new_tensor(neural_ode.t_span[0]), *arguments)
        spec = auto_correction(sample.z) if isinstance(spec, str) else spec
        net = spec.build(sample, x, 0.1 * macs).to(sample.z)
        net.set_scales(blocks, x, neural_ode.t_span)
    return fit_bounded_correction(net, blocks)


def _training_stages(settings: FitSettings) -> list[tuple[int, str]]:
    """(last epoch, kind) of each stage; the two split ``max_epochs``."""
    if settings.finetune is None:
        return [(settings.max_epochs, settings.loss)]
    first = max(1, round((1 - _FINETUNE_SHARE) * settings.max_epochs))
    return [(first, settings.loss), (max(settings.max_epochs, first + 1), settings.finetune)]


def _delta(
    correction: nn.Module, neural_ode: NeuralODE, solver: BaseSolver, data: _States, steps: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Largest and mean ||g - R|| on held-out states, for every fitted K."""
    delta = {}
    for k in steps:
        grid = uniform_grid(neural_ode.t_span, k)
        pairs = [(i, i + 1) for i in range(k)]
        blocks = residual_blocks(neural_ode, solver, grid, data.on_grid(grid), data.x, pairs)
        with torch.no_grad():
            errors = torch.cat([
                torch.linalg.vector_norm(
                    (block.target - correction(block.eps, block.z.new_tensor(block.s), block.z, block.stages,
                                               neural_ode.control(data.x))).flatten(1), dim=1)
                for block in blocks
            ])  # fmt: skip
        delta[k] = {"max": float(errors.max()), "mean": float(errors.mean())}
    return delta


def max_rows(state_numel: int, n_times: int, n_stages: int, itemsize: int) -> int:
    """Rows whose reference states and residual blocks fit one GiB."""
    per_row = state_numel * itemsize * (n_times + _MAX_BLOCKS * (n_stages + 1))
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
    times = mesh_times(neural_ode.t_span, sizes.steps, rng)
    x = x[torch.from_numpy(rng.permutation(len(x)))]
    n_valid = max(1, round(settings.validation_fraction * len(x)))

    def solve(rows: Tensor, **tolerances: Any) -> Tensor:
        return solve_references(
            neural_ode, rows, times, memory=settings.memory, n_jobs=settings.n_jobs,
            device=settings.device, verbose=settings.verbose, **tolerances,
        )  # fmt: skip

    pairs = choose_steps(times, sizes, _MAX_BLOCKS, rng)
    on_device = x.to(settings.device)
    states, blocks = conditioned_blocks(
        neural_ode, solver, times, on_device, pairs,
        lambda **how: solve(x, **how), rtol=settings.rtol, atol=settings.atol,
    )  # fmt: skip
    valid = _States(on_device[:n_valid], times, states[:, :n_valid])
    train = _States(on_device[n_valid:], times, states[:, n_valid:])
    with seeded(seed, settings.device):
        return _train(neural_ode, solver, settings, sizes, train, valid, blocks, warm)


def _train(
    neural_ode: NeuralODE,
    solver: BaseSolver,
    settings: FitSettings,
    sizes: StepSizes,
    train: _States,
    valid: _States,
    blocks: list[Residual],
    warm: BoundedCorrection | None,
) -> FittedCorrection:
    n_valid = len(valid.x)
    fitted = _blocks_of(blocks, slice(n_valid, None))
    held_out = _blocks_of(blocks[:: max(1, len(blocks) // _VALID_BLOCKS)], slice(min(n_valid, _VALID_ROWS)))
    control = neural_ode.control(train.x)
    if warm is None:
        correction = build_correction(settings.correction, neural_ode, [block.residual for block in fitted], control)
    else:
        correction = copy.deepcopy(warm)
    stages = _training_stages(settings)
    solves = _Solves(neural_ode, solver, _state_loss(stages[-1][1], neural_ode))

    def validate(objective: _Objective) -> float:
        """The last stage's loss on held-out rows, a geometric mean over step sizes; 1 is the base solver."""
        g = objective.correction
        with torch.no_grad():
            if stages[-1][1] == "residual":
                losses = [block.loss(g, slice(_VALID_ROWS), neural_ode.control(valid.x)) for block in held_out]
            else:
                losses = [solves.share(valid, slice(_VALID_ROWS), k, g) for k in sizes.steps]
        return float((torch.stack(losses) + _TINY).log().mean().exp())

    curriculum = _Curriculum(len(train.x), settings.batch_size, stages, fitted, sizes.steps)
    best = BestWeights(validate)
    schedule = cosine_schedule(len(curriculum), [end for end, _ in stages], [1.0, 0.5][: len(stages)])
    net = _CorrectionNet(
        _Objective(correction, train, solves, control),
        criterion=nn.Identity,
        optimizer=settings.optimizer,
        lr=settings.lr,
        max_epochs=stages[-1][0],
        train_split=None,
        iterator_train__batch_size=None,
        iterator_train=DataLoader,
        callbacks=assemble_callbacks(best, settings.callbacks, schedule, "fitting correction", settings.verbose),
        verbose=settings.verbose,
        device=settings.device,
    )
    net.initialize()
    net.partial_fit(curriculum, None)
    best.restore(net)
    correction = net.module_.correction.eval().requires_grad_(False)
    return FittedCorrection(
        correction, net, _history(net, stages), _delta(correction, neural_ode, solver, valid, sizes.steps),
        (sizes.low, sizes.high), net.interrupted_,
    )  # fmt: skip


def _blocks_of(blocks: Sequence[Residual], rows: slice) -> list[_Block]:
    selected = [select_rows(block, rows) for block in blocks]
    return [_Block(block, max(float(mean_norm(block.target)), _TINY)) for block in selected]


def _history(net: TrainingNet, stages: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """One row an epoch, with the stage it belongs to."""
    keys = ("epoch", "train_loss", "valid_loss", "dur")
    rows = []
    for row in net.history:
        kind = next((kind for end, kind in stages if row["epoch"] <= end), stages[-1][1])
        rows.append({"stage": kind, **{key: row[key] for key in keys if key in row}})
    return rows
