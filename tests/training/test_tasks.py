"""A task is a Neural ODE and rows; what belongs to a row stays with it."""

import pytest
import torch

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import Task

ODE = NeuralODE(lambda t, z: -z, t_span=(2.0, -1.0))


def make_task(**condition):
    return Task(ODE, torch.arange(8.0).reshape(4, 2), condition)


def test_conditions_go_with_their_rows():
    task = make_task(label=torch.tensor([0, 1, 2, 3]), scale=2.5)
    some = task.rows(torch.tensor([3, 1]))
    assert len(task) == 4 and len(some) == 2
    assert some.x.tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert some.condition["label"].tolist() == [3, 1] and some.condition["scale"] == 2.5
    assert some.neural_ode is ODE and task.condition["label"].tolist() == [0, 1, 2, 3]


def test_a_dtype_is_one_of_numbers_not_of_labels():
    task = make_task(label=torch.tensor([0, 1, 2, 3]), weight=torch.ones(4))
    double = task.to(dtype=torch.float64)
    assert (double.x.dtype, double.condition["weight"].dtype) == (torch.float64, torch.float64)
    assert double.condition["label"].dtype == torch.int64
    moved = task.to("meta")
    assert {moved.x.device.type, *(value.device.type for value in moved.condition.values())} == {"meta"}
    assert moved.x.dtype == torch.float32


def test_the_span_has_a_length_in_either_direction():
    assert make_task().span == 3.0


@pytest.mark.parametrize("data_controlled", [False, True])
def test_the_inputs_of_the_field_are_x_where_it_is_data_controlled(data_controlled):
    ode = NeuralODE(lambda t, z, x: x * z, data_controlled=data_controlled)
    task = Task(ode, torch.ones(3, 2), {"label": torch.arange(3)})
    assert task.inputs.x is (task.x if data_controlled else None)
    assert task.inputs.rows([2]).condition["label"].tolist() == [2]
