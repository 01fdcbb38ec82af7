"""The skorch nets of all trainings: they stop on divergence, note an interruption and keep their best weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochTimer,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
)
from skorch.dataset import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..modules.serialization import DeviceFree
from .batches import Batches
from .callback_checks import each_callback
from .given_rows import GivenRows, named, unnamed


class TrainingDivergedError(RuntimeError):
    """The training loss is no longer finite."""


def draw_seed(random_state: Any) -> int:
    """Draw a seed from ``random_state``; None draws it from the operating system, not from NumPy's global generator."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0]) % 2**31
    return int(check_random_state(random_state).randint(2**31 - 1))


class Divergence(Callback):
    """Raises an error as soon as an epoch's loss is not finite."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        loss = net.history[-1, "train_loss"]
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"training diverged in epoch {len(net.history)}: the loss is {loss}. Lower lr (now {net.lr:g}), clip "
                "gradients with a skorch GradientNormClipping callback, or scale the inputs."
            )


class BestWeights(Callback):
    """Keeps the weights of the best epoch in memory.

    Parameters
    ----------
    validate : callable, optional
        ``validate(module)`` returns the loss to minimise, which is recorded as ``valid_loss``. A fit then always ends
        with the best weights, which may be the initial ones. Without it, the best epoch is that of the lowest recorded
        ``valid_loss``, or ``train_loss`` where nothing is held out. Its weights are then loaded only after Ctrl-C.
    """

    def __init__(self, validate: Callable[[Any], float] | None = None):
        self.validate = validate

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.best_loss_ = math.inf
        self.best_weights_: dict[str, Any] = {}
        self.scored_, self.n_finished_ = self.validate is None, 0

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        if not self.scored_:  # not earlier, since a LoadInitState loads weights in on_train_begin
            self._take(net, self._valid_loss(net))
            self.scored_ = True

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        row = net.history[-1]
        if self.validate is None:
            loss = float(row.get("valid_loss", row.get("dopri5_loss", row["train_loss"])))
        else:
            loss = self._valid_loss(net)
            net.history.record("valid_loss", loss)
            net.history.record("valid_loss_best", loss < self.best_loss_)
        if loss < self.best_loss_ or not self.best_weights_:
            self._take(net, loss)
        self.n_finished_ = len(net.history)

    def _valid_loss(self, net: NeuralNet) -> float:
        net.module_.eval()  # skorch's next step sets train mode again
        return self.validate(net.module_)  # type: ignore[misc]

    def _take(self, net: NeuralNet, loss: float) -> None:
        weights = copy.deepcopy(net.module_.state_dict())  # copied first, so that a Ctrl-C never parts loss and weights
        self.best_loss_, self.best_weights_ = loss if math.isfinite(loss) else math.inf, weights

    def restore(self, net: NeuralNet) -> None:
        """Load the best weights, with ``validate`` or after Ctrl-C, and drop the data that validating needed."""
        if self.validate is not None or net.interrupted_:
            net.module_.load_state_dict(self.best_weights_)
        self.best_weights_ = {}
        if self.validate is not None:
            self.validate = _released


def best_loss(net: NeuralNet) -> float:
    """Return the loss of the net's best weights."""
    return float(dict(net.callbacks_)["best_weights"].best_loss_)


def _released(module: Any) -> float:
    raise RuntimeError("the validation data of a finished fit has been released; fit again.")


class FreshPhases(Callback):
    """Clears the optimizer's state where a new phase begins, since its loss has gradients of another size.

    Parameters
    ----------
    ends : sequence of int
        Last epoch of each phase.
    """

    def __init__(self, ends: Sequence[int]):
        self.ends = ends

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        if len(net.history) - 1 in self.ends:
            net.optimizer_.state.clear()


class EpochBar(Callback):
    """Shows one progress bar for the whole training, with the current losses."""

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
        del self.bar_  # a pickled bar could not be loaded


class JointOutput(NamedTuple):
    """What a module returns in a joint training: its output, and another loss with its weight."""

    output: Tensor
    joint_loss: Tensor
    weight: float


class TrainingNet(DeviceFree, NeuralNet):
    """A NeuralNet that keeps its best epoch after Ctrl-C and draws from its own generator.

    It replaces skorch's pickling, which uses plain pickle for modules and so loses classes defined in a notebook.
    """

    interrupted_ = False
    learns_alone_ = False
    """Whether the net was found to learn from a batch of a single row."""
    generator_: torch.Generator | None = None

    def train(self, x: Any, y: Any, generator: torch.Generator) -> None:
        """Train for ``max_epochs``, with all batches drawn from ``generator``.

        Ctrl-C sets ``interrupted_`` and leaves the weights and history of finished epochs. It is raised if no epoch was
        finished.
        """
        self.generator_ = generator
        try:
            self.partial_fit(x, y)
        finally:
            self.generator_ = None
        best = dict(self.callbacks_)["best_weights"]
        if self.interrupted_:
            if not best.n_finished_:
                raise KeyboardInterrupt
            while len(self.history) > best.n_finished_:
                self.history.pop()
            self.module_.zero_grad()
        best.restore(self)

    def fit_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.interrupted_ = False
        try:
            return super().fit_loop(*args, **kwargs)
        except KeyboardInterrupt:
            self.interrupted_ = not self._stopped_early()
            raise

    def get_loss(self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False) -> Tensor:
        """Return the loss of a batch; in a joint training with the other loss, which is recorded as well."""
        if not isinstance(y_pred, JointOutput):
            loss: Tensor = super().get_loss(y_pred, y_true, X=X, training=training)
            return loss
        self.history.record_batch("joint_loss", y_pred.joint_loss.item())
        loss = self.get_loss(y_pred.output, y_true, X=X, training=training)
        return loss + y_pred.weight * y_pred.joint_loss

    def _stopped_early(self) -> bool:
        """Return whether an EarlyStopping has run out of patience, since it raises KeyboardInterrupt too."""
        stoppers = [callback for _, callback in self.callbacks_ if isinstance(callback, EarlyStopping)]
        return any(stopper.misses_ >= stopper.patience for stopper in stoppers)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return batches of a dataset, with a generator: without one a DataLoader draws from torch's global one.

        How rows are fetched is said here, and not in arguments of the net: skorch keeps the names of those in a set,
        and equal sets may be pickled in different orders.
        """
        has_rows = isinstance(dataset, TensorRows)
        arguments: dict[str, Any] = {"collate_fn": collated} if has_rows else {}
        if not training:
            arguments |= {"batch_size": self.batch_size} | self.get_params_for("iterator_valid")
            return self.iterator_valid(dataset, generator=torch.Generator(), **arguments)
        if has_rows:
            arguments["batch_sampler"] = Batches(len(dataset), self.batch_size, self.generator_)
        arguments |= self.get_params_for("iterator_train")
        return self.iterator_train(dataset, generator=self.generator_, **arguments)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring(name="train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring(name="valid_loss")),
            ("divergence", Divergence()),
        ]


class ClassifierNet(TrainingNet, NeuralNetClassifier):
    """A net that predicts encoded labels, so that callbacks may score it."""


class RegressorNet(TrainingNet, NeuralNetRegressor):
    """A net that predicts targets, so that callbacks may score it."""


class TensorRows(Dataset):
    """Rows and targets, fetched a batch at a time: skorch's row by row takes a large share of a small net's time."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Any, Tensor]:
        index = torch.as_tensor(indices, device=self.X.device)
        return self.X[index], torch.zeros(len(index)) if self.y is None else self.y[index]


class NamedRows(TensorRows):
    """Rows of which skorch hands x, a condition and times to the module by name; rows alone stay a tensor."""

    def __init__(self, X: Any, y: Any = None, length: int | None = None):
        # A callback that scores batches passes them to predict as it gets them.
        super().__init__(unnamed(X) if isinstance(X, Mapping) else X, y, length)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Any, Tensor]:
        rows, y = super().__getitems__(indices)
        return named(rows) if isinstance(rows, GivenRows) else rows, y


def collated(batch: Any) -> Any:
    """Return the batch unchanged, because :class:`TensorRows` already gives one."""
    return batch


class LossNet(TrainingNet):
    """A net whose module returns the loss itself."""

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        return self.module_(x)

    def get_loss(self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False) -> Tensor:
        if isinstance(y_pred, JointOutput):
            return super().get_loss(y_pred, y_true, X=X, training=training)
        loss: Tensor = y_pred
        return loss


def cosine_schedule(n_batches: int, phase_ends: Sequence[int], peaks: Sequence[float]) -> LRScheduler:
    """Make a cosine decay to zero within each phase, after a warm-up over the phase's first twentieth.

    Parameters
    ----------
    n_batches : int
        Number of batches in an epoch.
    phase_ends : sequence of int
        Last epoch of each phase.
    peaks : sequence of float
        Highest learning rate of each phase, as a share of ``lr``.
    """
    ends = [n_batches * end for end in phase_ends]
    starts = [0, *ends[:-1]]

    def factor(step: int) -> float:
        for start, end, peak in zip(starts, ends, peaks, strict=True):
            if step < end:
                share = (step + 0.5 - start) / (end - start)
                return peak * min(1.0, share / 0.05) * 0.5 * (1 + math.cos(math.pi * share))
        return 0.0

    return LRScheduler(policy=torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor, step_every="batch")


class NetSettings(Protocol):
    """Settings that every training has."""

    @property
    def optimizer(self) -> Any: ...
    @property
    def lr(self) -> float: ...
    @property
    def max_epochs(self) -> int: ...
    @property
    def callbacks(self) -> Any: ...
    @property
    def device(self) -> str: ...
    @property
    def verbose(self) -> int: ...


Net = TypeVar("Net", bound=TrainingNet)


def build_net(
    kind: type[Net],
    module: nn.Module,
    settings: NetSettings,
    best: BestWeights,
    description: str,
    *,
    schedule: LRScheduler | None,
    first: Sequence[tuple[str, Callback]] = (),
    **arguments: Any,
) -> Net:
    """Make an initialized skorch net around a module; all nets are made here.

    Parameters
    ----------
    kind : type
        Class of the net.
    best : BestWeights
        Callback that keeps the best weights.
    description : str
        Text of the progress bar.
    schedule : LRScheduler or None
        Schedule of the learning rate. One among the user's callbacks replaces it.
    first : sequence of (str, Callback)
        Callbacks that come before all others.
    **arguments
        Further arguments of skorch's net.
    """
    callbacks = assemble_callbacks(best, settings.callbacks, schedule, description, settings.verbose)
    defaults: dict[str, Any] = {"criterion": nn.Identity, "train_split": None}
    net = kind(
        module,
        **defaults | arguments,
        optimizer=settings.optimizer,
        lr=settings.lr,
        max_epochs=settings.max_epochs,
        callbacks=[*first, *callbacks],
        verbose=settings.verbose,
        device=settings.device,
    )
    return net.initialize()


def assemble_callbacks(
    best: BestWeights, user: Any, schedule: LRScheduler | None, description: str, verbose: int
) -> list[tuple[str, Callback]]:
    """List our callbacks first, so that the user's see ``valid_loss``; a schedule of the user's replaces ours."""
    named = [entry if isinstance(entry, tuple) else (f"user_{i}", entry) for i, entry in enumerate(user or [])]
    callbacks: list[tuple[str, Callback]] = [("best_weights", best)]
    if schedule is not None and not any(isinstance(callback, LRScheduler) for callback in each_callback(user)):
        callbacks.append(("schedule", schedule))
    if verbose > 0:
        callbacks.append(("progress", EpochBar(description)))
    if verbose > 1:
        callbacks.append(("print_log", PrintLog()))
    return callbacks + named


def move_net(net: TrainingNet, device: torch.device) -> None:
    """Move a trained skorch net to another device, in place."""
    net.device = str(device)
    net.module_.to(device)
    net.criterion_.to(device)
    # Loading moves the moments to the device of their parameters.
    net.optimizer_.load_state_dict(net.optimizer_.state_dict())
