"""What our skorch nets share: they stop on divergence, remember an interruption and keep their best weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochTimer,
    LoadInitState,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
)
from skorch.dataset import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..modules.serialization import DeviceFree


class TrainingDivergedError(RuntimeError):
    """The training loss is no longer finite."""


def draw_seed(random_state: Any) -> int:
    """A seed from ``random_state``; with None from the operating system, leaving NumPy's global generator alone."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0]) % 2**31
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch inside, leave its global generators as found."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed, which would seed every device, those that are not forked here too.
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


class Divergence(Callback):
    """Raises as soon as an epoch's loss is not finite."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        loss = net.history[-1, "train_loss"]
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"training diverged in epoch {len(net.history)}: the loss is {loss}. Lower lr (now {net.lr:g}), clip "
                "gradients with a skorch GradientNormClipping callback, or scale the inputs."
            )


class BestWeights(Callback):
    """Scores every epoch and keeps the weights of the best one in memory.

    ``validate(module)`` returns the loss to minimise, recorded as ``valid_loss``.
    """

    def __init__(self, validate: Callable[[Any], float]):
        self.validate = validate

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self._take(net, math.inf)
        self.scored_ = False

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        if not self.scored_:  # not sooner: a LoadInitState replaces the weights in on_train_begin
            self.scored_ = True
            self._take(net, self.validate(net.module_))

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        loss = self.validate(net.module_)
        net.history.record("valid_loss", loss)
        net.history.record("valid_loss_best", loss < self.best_loss_)
        if loss < self.best_loss_:
            self._take(net, loss)

    def _take(self, net: NeuralNet, loss: float) -> None:
        self.best_loss_ = loss if math.isfinite(loss) else math.inf
        self.best_weights_ = copy.deepcopy(net.module_.state_dict())

    def restore(self, net: NeuralNet) -> None:
        """Load the best weights, also after an interruption, and let go of what validating needed."""
        net.module_.load_state_dict(self.best_weights_)
        self.best_weights_ = {}
        self.validate = _released


def _released(module: Any) -> float:
    raise RuntimeError("the validation data of a finished fit has been released; fit again.")


class FreshStages(Callback):
    """Clears the optimizer's memory where a new stage begins: another loss has gradients of another size.

    Parameters
    ----------
    stage_ends : sequence of int
        Epoch at which each stage ends.
    """

    def __init__(self, stage_ends: Sequence[int]):
        self.stage_ends = stage_ends

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        if len(net.history) - 1 in self.stage_ends:
            net.optimizer_.state.clear()


class EpochBar(Callback):
    """One progress bar for the whole training, with the losses beside it."""

    def __init__(self, description: str):
        self.description = description

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_ = tqdm(total=net.max_epochs, desc=self.description, leave=False)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        row = net.history[-1]
        losses = {key: f"{row[key]:.3g}" for key in ("train_loss", "valid_loss") if key in row}
        self.bar_.set_postfix(losses, refresh=False)
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_.close()
        del self.bar_  # a pickled bar cannot be loaded again


class TrainingNet(DeviceFree, NeuralNet):
    """A NeuralNet that reports an interruption instead of swallowing it.

    Pickled our way: skorch's uses plain pickle for modules, which loses classes defined in a notebook.
    """

    interrupted_ = False

    def fit_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.interrupted_ = False
        try:
            return super().fit_loop(*args, **kwargs)
        except KeyboardInterrupt:
            self.interrupted_ = not self._stopped_early()
            raise

    def _stopped_early(self) -> bool:
        """Whether an EarlyStopping has run out of patience: it, too, raises KeyboardInterrupt."""
        stoppers = [callback for _, callback in self.callbacks_ if isinstance(callback, EarlyStopping)]
        return any(stopper.misses_ >= stopper.patience for stopper in stoppers)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring(name="train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring(name="valid_loss")),
            ("divergence", Divergence()),
        ]


class TensorRows(Dataset):
    """Rows of a tensor, fetched a batch at a time: row by row, as skorch does, costs a small net much of its training."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.X[torch.as_tensor(indices, device=self.X.device)], torch.zeros(len(indices))


def collated(batch: Any) -> Any:
    """What :class:`TensorRows` gives is a batch already."""
    return batch


def refuse_checkpoints(callbacks: Any, why: str) -> None:
    """Refuse callbacks that write or read weights in files of one name, where several nets would share them."""
    for entry in callbacks or []:
        callback = entry[1] if isinstance(entry, tuple) else entry
        if isinstance(callback, (Checkpoint, LoadInitState)):
            raise ValueError(f"callbacks holds a {type(callback).__name__}: {why}")


class LossNet(TrainingNet):
    """A net whose module returns the loss itself."""

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        return self.module_(x)

    def get_loss(self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False) -> Tensor:
        return y_pred


def cosine_schedule(n_batches: int, stage_ends: Sequence[int], peaks: Sequence[float]) -> LRScheduler:
    """Cosine decay to zero within each stage, after a warm-up over its first twentieth.

    Parameters
    ----------
    n_batches : int
        Batches an epoch.
    stage_ends : sequence of int
        Epoch at which each stage ends.
    peaks : sequence of float
        Highest learning rate of each stage as a share of ``lr``.
    """
    ends = [n_batches * end for end in stage_ends]
    starts = [0, *ends[:-1]]

    def factor(step: int) -> float:
        for start, end, peak in zip(starts, ends, peaks, strict=True):
            if step < end:
                share = (step + 0.5 - start) / (end - start)
                return peak * min(1.0, share / 0.05) * 0.5 * (1 + math.cos(math.pi * share))
        return 0.0

    return LRScheduler(policy=torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor, step_every="batch")


def assemble_callbacks(
    best: BestWeights | None, user: Any, schedule: LRScheduler | None, description: str, verbose: int
) -> list[tuple[str, Callback]]:
    """Ours first, so that the user's see ``valid_loss``; a schedule of the user's replaces ours."""
    named = [entry if isinstance(entry, tuple) else (f"user_{i}", entry) for i, entry in enumerate(user or [])]
    callbacks: list[tuple[str, Callback]] = [] if best is None else [("best_weights", best)]
    if schedule is not None and not any(isinstance(callback, LRScheduler) for _, callback in named):
        callbacks.append(("schedule", schedule))
    if verbose > 0:
        callbacks.append(("progress", EpochBar(description)))
    if verbose > 1:
        callbacks.append(("print_log", PrintLog()))
    return callbacks + named
