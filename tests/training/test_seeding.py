"""Draws are ours alone: torch's and NumPy's global generators are as they were found."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Laplace

from sklearn_hyper.modules import Flow
from sklearn_hyper.modules.seeding import own_generator, seeded
from sklearn_hyper.training.nets import draw_seed

WIDE = Independent(Laplace(torch.zeros(2), 2 * torch.ones(2)), 1)


def test_inside_it_is_the_seed_s_and_outside_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with seeded(3, "cpu"):
        first = torch.rand(2)
        with seeded(3, "cpu"):  # may be entered again
            torch.testing.assert_close(torch.rand(2), first, rtol=0, atol=0)
        second = torch.rand(2)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)
    torch.manual_seed(3)
    torch.testing.assert_close(torch.rand(4), torch.cat([first, second]), rtol=0, atol=0)


def test_it_is_left_as_found_by_an_error_too():
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), seeded(0, "cpu"):
        torch.rand(1)
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), state)
    with ThreadPoolExecutor(1) as pool:  # and another thread may enter
        assert pool.submit(_draw, 0).result(timeout=10) == _draw(0)


def _draw(seed):
    with seeded(seed, "cpu"):
        return torch.rand(3).tolist() + nn.Linear(2, 2).weight.ravel().tolist()


def test_threads_take_turns():
    expected, state = [_draw(seed) for seed in range(16)], torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(_draw, range(16))) == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_its_parent_s_threads():
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with seeded(1, "cpu"):
            entered.set()
            leave.wait(30)

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(hold)
        entered.wait(10)
        with multiprocessing.get_context("fork").Pool(1) as processes:
            drawn = processes.apply_async(_draw, (0,)).get(timeout=20)
        leave.set()
        holding.result(timeout=10)
    assert drawn == _draw(0)


@pytest.mark.parametrize("base", [None, WIDE])
def test_base_draws_are_the_generator_s(base):
    state, found = torch.get_rng_state(), np.random.get_state()[1].copy()
    flow = Flow(lambda t, z: -z, n_features=2, base_distribution=base)
    first, second = (flow.sample_base(2000, torch.float64, own_generator(4)) for _ in range(2))
    assert torch.equal(first, second)
    generator = own_generator(4)
    assert torch.equal(flow.sample_base(2000, torch.float64, generator), first)
    assert not torch.equal(flow.sample_base(2000, torch.float64, generator), first)
    # A Laplace distribution of scale b has the variance 2 b^2.
    assert first.var() == pytest.approx(1 if base is None else 8, rel=0.15)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], found)


def test_a_seed_out_of_nothing_leaves_numpy_alone():
    found = np.random.get_state()[1].copy()
    seeds = {draw_seed(None) for _ in range(5)}
    assert len(seeds) == 5 and np.array_equal(np.random.get_state()[1], found)
    assert draw_seed(3) == draw_seed(np.random.RandomState(3)) == draw_seed(3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_s_generator_is_touched_for_cuda_alone():
    state = torch.cuda.get_rng_state()
    with seeded(0, "cpu"):
        assert torch.equal(torch.cuda.get_rng_state(), state)
    with seeded(0, "cuda"):
        assert not torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.equal(torch.cuda.get_rng_state(), state)
