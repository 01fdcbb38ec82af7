"""Which steps a correction learns from, and with which base solvers."""

from collections import Counter

import numpy as np
import pytest

from sklearn_hyper import alpha_family
from sklearn_hyper.numerics import resolve_base_solver
from sklearn_hyper.training.residual_sets import deal_solvers

FAMILY = [resolve_base_solver(alpha_family(alpha)) for alpha in (0.1, 0.3, 0.5, 0.7, 1.0)]
PAIRS = [(i, i + 1) for i in range(6)]


def deal(pairs, family, n_blocks, seed=0):
    return deal_solvers(pairs, family, n_blocks, np.random.default_rng(seed))


def test_one_base_solver_takes_every_step_and_draws_no_random_number():
    rng = np.random.default_rng(0)
    steps = deal_solvers(PAIRS, FAMILY[:1], 48, rng)
    assert [(i, j) for i, j, _ in steps] == PAIRS and {solver for *_, solver in steps} == {FAMILY[0]}
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("n_blocks", [30, 48])
def test_every_pair_has_every_base_solver_where_there_is_room(n_blocks):
    steps = deal(PAIRS, FAMILY, n_blocks)
    assert Counter(steps) == Counter((i, j, solver) for i, j in PAIRS for solver in FAMILY)


@pytest.mark.parametrize("n_blocks", [1, 6, 13, 29])
def test_base_solvers_come_equally_often_within_the_room(n_blocks):
    steps = deal(PAIRS, FAMILY, n_blocks)
    assert len(steps) == len(PAIRS) * max(1, n_blocks // len(PAIRS))
    counts = Counter(solver for *_, solver in steps)
    assert sum(counts.values()) == len(steps) and max(counts.values()) - min(counts.values()) <= 1
    assert {(i, j) for i, j, _ in steps} == set(PAIRS)


def test_the_deal_follows_the_generator():
    assert deal(PAIRS, FAMILY, 20) == deal(PAIRS, FAMILY, 20) != deal(PAIRS, FAMILY, 20, seed=1)
