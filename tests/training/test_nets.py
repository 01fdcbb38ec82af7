"""What our skorch nets share: schedules, best weights, fresh phases, divergence, interruptions, and where their draws come from."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from interruptions import Stops
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from small_tasks import fit_settings
from torch import nn

from sklearn_hyper.modules.seeding import own_generator
from sklearn_hyper.training.nets import (
    BestWeights,
    FreshPhases,
    LossNet,
    TensorRows,
    TrainingDivergedError,
    assemble_callbacks,
    best_loss,
    build_net,
    cosine_schedule,
    draw_seed,
)


class Parabola(nn.Module):
    """Its loss is the square of its weight's distance from the rows."""

    def __init__(self, start=3.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))

    def forward(self, rows):
        return (self.weight - rows).pow(2).mean()


ROWS = torch.zeros(12)


def distance(module):
    return float(module.weight.detach().abs())


def make_net(module=None, validate=distance, first=(), **settings):
    settings = fit_settings(**{"lr": 0.1, "batch_size": 4, "max_epochs": 5} | settings)
    return build_net(
        LossNet, module or Parabola(), settings, BestWeights(validate), "test", schedule=None, first=first,
        batch_size=settings.batch_size, dataset=TensorRows,
    )  # fmt: skip


def train(net, seed=0):
    net.train(ROWS, None, own_generator(seed))
    return net


# ---------------------------------------------------------------------- learning rates
def test_each_phase_has_a_warm_up_and_decays_to_nothing():
    factor = cosine_schedule(10, [4, 10], [1.0, 0.5]).kwargs["lr_lambda"]
    first, second = [factor(step) for step in range(40)], [factor(step) for step in range(40, 100)]
    for phase, peak in ((first, 1.0), (second, 0.5)):
        top = int(np.argmax(phase))
        assert 0.9 * peak < max(phase) <= peak and 0 < phase[0] < phase[-1] + peak / 2
        assert all(before < after for before, after in pairwise(phase[: top + 1]))
        assert all(before > after for before, after in pairwise(phase[top:]))
        assert phase[-1] < 0.01 * peak
    assert factor(100) == 0


# ---------------------------------------------------------------------- the best weights
class Spoils(Callback):
    """Throws the weight far off at the end of an epoch's batches."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            with torch.no_grad():
                net.module_.weight.fill_(50.0)


def test_a_fit_ends_with_its_best_epoch():
    net = train(make_net(callbacks=[Spoils(5)]))
    losses = [row["valid_loss"] for row in net.history]
    assert losses[-1] > 10 and distance(net.module_) == min(losses) == best_loss(net)
    assert [row["valid_loss_best"] for row in net.history] == [True] * 4 + [False]


def test_weights_that_training_only_spoils_stay_those_it_began_with():
    net = train(make_net(Parabola(0.01), callbacks=[Spoils(1)], max_epochs=1))
    assert distance(net.module_) == pytest.approx(0.01) == best_loss(net)


def test_weights_whose_loss_is_not_finite_are_never_best():
    net = train(make_net(validate=lambda module: math.inf if distance(module) < 2.9 else 1.0))
    assert best_loss(net) == 1.0 and distance(net.module_) == 3.0


def test_without_validation_the_last_epoch_counts():
    net = train(make_net(validate=None))
    assert distance(net.module_) < 2 and best_loss(net) == net.history[-1]["train_loss"]


def test_a_finished_fit_holds_no_validation_data():
    net = train(make_net())
    with pytest.raises(RuntimeError, match="has been released; fit again"):
        dict(net.callbacks_)["best_weights"].validate(net.module_)


# ---------------------------------------------------------------------- phases
def test_a_new_phase_starts_with_an_optimizer_that_remembers_nothing():
    seen = []

    class Looks(Callback):
        def on_batch_begin(self, net, **kwargs):
            steps = [int(state["step"]) for state in net.optimizer_.state.values()]
            seen.append((len(net.history), steps[0] if steps else 0))

    train(make_net(first=[("fresh_phases", FreshPhases([2, 5]))], callbacks=[Looks()]))
    assert seen == [
        (epoch, step) for epoch, begun in ((1, 0), (2, 3), (3, 0), (4, 3), (5, 6)) for step in range(begun, begun + 3)
    ]


# ---------------------------------------------------------------------- divergence and interruptions
def test_a_loss_that_is_no_number_stops_the_training():
    with pytest.raises(TrainingDivergedError, match=r"diverged in epoch 1: the loss is nan\. Lower lr \(now 0\.1\)"):
        train(make_net(Parabola(math.nan), validate=None))


def test_an_interruption_keeps_the_epochs_that_were_finished():
    whole = train(make_net(max_epochs=3))
    net = train(make_net(callbacks=[Stops(4, 2)]))
    assert net.interrupted_ and len(net.history) == 3
    assert distance(net.module_) == distance(whole.module_) and net.module_.weight.grad is None


def test_an_interruption_of_the_first_epoch_leaves_nothing():
    with pytest.raises(KeyboardInterrupt):
        train(make_net(callbacks=[Stops(1, 2)]))


def test_early_stopping_is_no_interruption():
    net = train(make_net(max_epochs=50, callbacks=[EarlyStopping(patience=2, threshold=10, threshold_mode="abs")]))
    assert not net.interrupted_ and len(net.history) == 3


# ---------------------------------------------------------------------- callbacks and draws
def test_ours_come_first_and_a_schedule_of_the_users_replaces_ours():
    ours = cosine_schedule(1, [1], [1.0])
    own, best = LRScheduler(policy=torch.optim.lr_scheduler.StepLR, step_size=1), BestWeights()
    scoring = EpochScoring("r2")
    names = [name for name, _ in assemble_callbacks(best, [scoring, ("named", own)], ours, "test", 2)]
    assert names == ["best_weights", "progress", "print_log", "user_0", "named"]
    assert [name for name, _ in assemble_callbacks(best, None, ours, "test", 0)] == ["best_weights", "schedule"]


def test_training_draws_from_its_own_generator():
    state = torch.get_rng_state()
    one, other = (copy.deepcopy(train(make_net(), seed=3).module_.state_dict()) for _ in range(2))
    assert torch.equal(one["weight"], other["weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_of_one_random_state_are_equal():
    assert draw_seed(3) == draw_seed(np.random.RandomState(3)) == draw_seed(3) != draw_seed(4)
