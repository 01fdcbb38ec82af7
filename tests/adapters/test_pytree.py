"""Tuples, dicts and nests of tensors as states: packed and given back, solved as torchdiffeq solves tuples."""

import collections
import pickle

import numpy as np
import pytest
import torch
from small_hypersolvers import ROUGH_FITS
from torch import nn
from torchdiffeq import odeint

from sklearn_hyper import HypersolverDensity, HypersolverRegressor, NeuralODE
from sklearn_hyper.adapters import PytreeField

pytestmark = ROUGH_FITS
N, TIGHT = 6, {"rtol": 1e-9, "atol": 1e-9}
Phase = collections.namedtuple("Phase", ["q", "v"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Q, V, MASS, TOTAL = normal(N, 2), normal(N, 2, seed=1), normal(N, 3, 3, seed=2), normal(N, seed=3)


class Pair(nn.Module):
    """Position, velocity and the work done so far, which has no axis but the samples'."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, t, state):
        q, v, _ = state
        force = torch.tanh(self.net(q)) - t * v
        return v, force, (force * v).sum(1)


def of_dict(t, state):
    return {"total": state["total"] * 0 + 1, "images": -t * state["images"]}  # in another order than the example


def of_nest(t, state):
    phase, (images, rest) = state
    return Phase(phase.v, -phase.q), [images * 0, {"a": -rest["a"]}]


STATES = {
    "tuple": ((Q, V, TOTAL), 5),
    "dict": ({"images": MASS, "total": TOTAL}, 10),
    "nest": ((Phase(Q, V), [MASS, {"a": TOTAL}]), 14),
    "tensor": (MASS, 9),
}


def leaves(state):
    if isinstance(state, (torch.Tensor, np.ndarray)):
        return [state]
    return [leaf for part in (state.values() if isinstance(state, dict) else state) for leaf in leaves(part)]


@pytest.mark.parametrize("state, width", STATES.values(), ids=STATES)
def test_packing_loses_nothing(state, width):
    field = PytreeField(lambda t, state: state, example=state)
    z = field.pack(state)
    assert z.shape == (N, width) == (N, field.width)
    again = field.unpack(z)
    assert str(again) == str(state) and type(again) is type(state)
    assert all(leaf.data_ptr() for leaf in leaves(again))
    of_arrays = field.unpack(np.stack([z.numpy()] * 4, axis=1))  # as a trajectory
    for array, leaf in zip(leaves(of_arrays), leaves(state), strict=True):
        assert isinstance(array, np.ndarray) and array.shape == (N, 4, *leaf.shape[1:])
        np.testing.assert_array_equal(array[:, 2], leaf)
    torch.testing.assert_close(field.pack(field.unpack(z.numpy())), z)


def test_arrays_of_any_strides_and_no_rows_are_packed():
    field, arrays = PytreeField(lambda t, state: state, example=(Q, V)), (Q.numpy().copy(), V.numpy().copy())
    for array in arrays:
        array.setflags(write=False)
    torch.testing.assert_close(field.pack(arrays), field.pack((Q, V)))
    torch.testing.assert_close(field.pack(tuple(array[::-1] for array in arrays)), field.pack((Q, V)).flip(0))
    assert field.pack((Q[:0], V[:0])).shape == (0, 4) == field(torch.tensor(0.0), torch.zeros(0, 4)).shape


def test_tuples_end_where_torchdiffeq_takes_them():
    pair = Pair()
    times = torch.tensor([0.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        expected = [states[-1] for states in odeint(pair, (Q, V, TOTAL), times, **TIGHT)]
    field = PytreeField(pair, example=(Q[:1], V[:1], TOTAL[:1]))
    ends = field.unpack(NeuralODE(field, t_span=(0.0, 2.0))(field.pack((Q, V, TOTAL)), **TIGHT))
    for found, end in zip(ends, expected, strict=True):
        torch.testing.assert_close(found, end, rtol=0, atol=1e-7)
    assert pair.net.weight.requires_grad and pair.net.weight.grad is None


def test_dicts_and_nests_end_at_closed_forms():
    field = PytreeField(of_dict, example=STATES["dict"][0])
    end = field.unpack(NeuralODE(field)(field.pack(STATES["dict"][0]), **TIGHT))
    torch.testing.assert_close(end["images"], MASS * np.exp(-0.5), rtol=0, atol=1e-7)
    torch.testing.assert_close(end["total"], TOTAL + 1)
    field = PytreeField(of_nest, example=STATES["nest"][0])
    phase, (images, rest) = field.unpack(NeuralODE(field)(field.pack(STATES["nest"][0]), **TIGHT))
    torch.testing.assert_close(phase.q, Q * np.cos(1) + V * np.sin(1), rtol=0, atol=1e-7)
    torch.testing.assert_close(images, MASS)
    torch.testing.assert_close(rest["a"], TOTAL * np.exp(-1), rtol=0, atol=1e-7)


def test_a_hypersolver_changes_the_weights_inside():
    field = PytreeField(Pair(), example=(Q, V, TOTAL))
    X = field.pack(tuple(normal(60, *leaf.shape[1:], seed=i) for i, leaf in enumerate((Q, V, TOTAL))))
    fast = HypersolverRegressor(NeuralODE(field), n_steps=2, max_epochs=5, random_state=0).fit(X)
    assert type(fast.correction_).__name__ == "FieldWeights"
    assert fast.errors_[2]["mean"] < fast.errors_[2]["base_mean"]
    again = pickle.loads(pickle.dumps(fast))
    np.testing.assert_array_equal(again.predict(X), fast.predict(X))
    q, _, total = field.unpack(fast.trajectory(X))
    assert q.shape == (60, 3, 2) and total.shape == (60, 3)


def test_an_exported_field_takes_any_number_of_rows():
    field = PytreeField(Pair(), example=(Q, V, TOTAL))
    t, X = torch.tensor(0.3, dtype=torch.float64), field.pack((Q, V, TOTAL))
    free = torch.export.export(field, (t, X), dynamic_shapes=({}, {0: torch.export.Dim("n")})).module()
    torch.testing.assert_close(free(t, X[:3]), field(t, X[:3]))


class Driven(nn.Module):
    def forward(self, t, state, x=None, *, rate):
        (q,) = state
        return (-rate[:, None] * q + (0 if x is None else x[:, :2]),)


def test_conditions_and_inputs_go_to_the_field():
    rate = torch.rand(N, dtype=torch.float64)
    field = PytreeField(Driven(), example=(Q,), conditions=["rate"])
    end = NeuralODE(field)(Q, condition={"rate": rate}, **TIGHT)
    torch.testing.assert_close(end, Q * torch.exp(-rate)[:, None], rtol=0, atol=1e-7)
    end = NeuralODE(field, data_controlled=True)(Q, condition={"rate": rate * 0}, **TIGHT)
    torch.testing.assert_close(end, 2 * Q, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="condition must have the entries"):
        NeuralODE(field)(Q)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, t, z):
        return torch.tanh(self.conv(z)) - z


def test_images_have_densities():
    x = normal(24, 1, 3, 3).float()
    field = PytreeField(Images(), example=x)
    flow = HypersolverDensity(NeuralODE(field), n_features=9, n_steps=2, max_epochs=1, random_state=0)
    flow.fit(field.pack(x))
    assert flow.score_samples(field.pack(x)).shape == (24,)
    assert field.unpack(flow.sample(5, random_state=0)).shape == (5, 1, 3, 3)


@pytest.mark.parametrize(
    "example, error, match",
    [
        ((Q, 1.0), TypeError, r"example\[1\] is 1.0; a state is a tuple"),
        ({"a": [Q, None]}, TypeError, r"example\['a'\]\[1\] is None"),
        ((), ValueError, r"example=\(\) holds no tensor"),
        ((Q, TOTAL[0]), ValueError, r"example\[1\] has no axis of samples"),
        ((Q, V[:2]), ValueError, r"leaves with \[2, 6\] samples"),
    ],
    ids=["number", "none inside", "empty", "no axis", "lengths"],
)
def test_examples_that_are_no_states_are_refused(example, error, match):
    with pytest.raises(error, match=match):
        PytreeField(Pair(), example=example)


@pytest.mark.parametrize(
    "state, error, match",
    [
        ((Q, V), TypeError, r"state must be a tuple or list of 3, like the example; got tuple"),
        ({"q": Q}, TypeError, r"state must be a tuple or list of 3, like the example; got \['q'\]"),
        ((Q, V, None), TypeError, r"state\[2\] is a NoneType"),
        ((Q, V[:, :1], TOTAL), ValueError, r"state\[1\] has shape \(6, 1\); like the example's it must be \(n, 2\)"),
        ((Q, V[:3], TOTAL), ValueError, r"state\[1\] has 3 samples"),
        ((Q, V.float(), TOTAL), ValueError, r"state\[1\] has 6 samples of torch.float32"),
    ],
    ids=["too few", "dict", "none", "shape", "samples", "dtype"],
)
def test_states_of_another_structure_are_refused(state, error, match):
    with pytest.raises(error, match=match):
        PytreeField(Pair(), example=(Q, V, TOTAL)).pack(state)


def test_what_a_field_returns_is_checked():
    field = PytreeField(lambda t, state: {"images": state["images"]}, example=STATES["dict"][0])
    with pytest.raises(TypeError, match=r"the field's output must be a dict with the keys .*got \['images'\]"):
        field(torch.tensor(0.0), field.pack(STATES["dict"][0]))
    with pytest.raises(ValueError, match=r"z has shape \(6, 3\), and the last axis of packed states has 10 numbers"):
        field.unpack(normal(6, 3))
