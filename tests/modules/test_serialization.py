"""Pickles carry no device and no address, and everything a module may hold comes back as it was."""

import copy
import pickle
import subprocess
import sys

import joblib
import pytest
import torch
from torch import nn

from sklearn_hyper.modules import HypersolvedODE, NeuralODE
from sklearn_hyper.modules.serialization import DeviceFreeModule, pack, unpack
from sklearn_hyper.numerics import resolve_base_solver


class Holder(DeviceFreeModule):
    """Every way in which a module may hold a tensor."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("short", torch.randn(3, generator=generator).bfloat16())
        self.register_buffer("passing", torch.arange(4), persistent=False)
        self.register_buffer("absent", None)
        self.plain = torch.randn(2, 3, generator=generator).T
        self.nested = {"list": [torch.tensor(True), torch.tensor(2.0), torch.tensor([1j])]}
        plain = self.plain
        self.function = lambda z: z + plain.sum()

    def tensors(self):
        return {
            **dict(self.named_parameters(remove_duplicate=False)),
            **dict(self.named_buffers()),
            "plain": self.plain,
            **{f"nested {i}": tensor for i, tensor in enumerate(self.nested["list"])},
        }


@pytest.fixture(params=["pickle", "joblib", "cpu-deepcopy", "pack"])
def roundtrip(request, tmp_path):
    def through_file(module):
        joblib.dump(module, tmp_path / "module.joblib")
        return joblib.load(tmp_path / "module.joblib")

    return {
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "joblib": through_file,
        "cpu-deepcopy": copy.deepcopy,
        "pack": lambda module: unpack(pack(module)),
    }[request.param]


def test_every_tensor_comes_back_equal_in_value_dtype_shape_and_kind(roundtrip):
    module = Holder()
    loaded = roundtrip(module)
    expected, got = module.tensors(), loaded.tensors()
    assert expected.keys() == got.keys() and len(expected) == 11
    for name, tensor in expected.items():
        other = got[name]
        assert (other.dtype, other.shape, other.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad), (
            name
        )
        assert isinstance(other, nn.Parameter) is isinstance(tensor, nn.Parameter), name
        assert torch.equal(other, tensor), name
    assert loaded.absent is None
    assert loaded.state_dict().keys() == module.state_dict().keys()


def test_the_copy_is_independent(roundtrip):
    module = Holder()
    loaded = roundtrip(module)
    for tensor in loaded.tensors().values():
        tensor.data.zero_()
    assert all(tensor.bool().any() for tensor in module.tensors().values())


def test_tied_parameters_stay_tied(roundtrip):
    loaded = roundtrip(Holder())
    assert loaded.first.weight is loaded.second.weight
    assert len(list(loaded.parameters())) == 4


def test_mode_and_lambdas_survive(roundtrip):
    module = Holder().eval()
    loaded = roundtrip(module)
    assert not loaded.training and not loaded.first.training
    assert torch.equal(loaded.function(torch.zeros(1)), module.function(torch.zeros(1)))


def test_gradients_flow_through_a_loaded_module(roundtrip):
    loaded = roundtrip(Holder())
    loaded.second(loaded.first(torch.ones(1, 2))).sum().backward()
    assert loaded.first.weight.grad is not None and loaded.frozen.grad is None


def test_empty_tensors_come_back():
    empty = unpack(pack(torch.empty(0, 3, dtype=torch.float64)))
    assert (empty.shape, empty.dtype) == ((0, 3), torch.float64)


def test_a_map_may_refer_to_its_module():
    cell = []
    neural_ode = NeuralODE(lambda t, z: -z, output_map=lambda z: z + cell[0].t_span[1])
    cell.append(neural_ode)
    loaded = pickle.loads(pickle.dumps(neural_ode))
    assert torch.equal(loaded(torch.ones(1, 1)), neural_ode(torch.ones(1, 1)))


def test_hash_depends_on_values_alone():
    first, second, other = joblib.hash(Holder()), joblib.hash(Holder()), joblib.hash(Holder(seed=1))
    assert first == second != other
    assert joblib.hash(pickle.loads(pickle.dumps(Holder()))) == joblib.hash(pickle.loads(pickle.dumps(Holder())))


def test_hash_of_a_deepcopy_is_that_of_the_module():
    neural_ode = NeuralODE(nn.Linear(2, 2), output_map=nn.Linear(2, 3))
    assert joblib.hash(copy.deepcopy(neural_ode)) == joblib.hash(neural_ode)
    changed = copy.deepcopy(neural_ode)
    with torch.no_grad():
        changed.vector_field.bias[0] += 1e-6
    assert joblib.hash(changed) != joblib.hash(neural_ode)


def test_deepcopy_keeps_what_a_module_is_made_of():
    solver = resolve_base_solver("heun")
    module = HypersolvedODE(NeuralODE(lambda t, z: -z), solver, None, (0.0, 0.4, 1.0))
    copied = copy.deepcopy(module)
    z = torch.ones(2, 2)
    assert type(copied) is HypersolvedODE and copied.grid == module.grid and copied.base_solver == solver
    assert copied.neural_ode is not module.neural_ode and torch.equal(copied(z), module(z))


def test_a_pickle_names_no_device():
    # A tensor's own pickle holds the name of its storage's device.
    assert b"_rebuild_tensor_v2" not in pickle.dumps(Holder())


IN_MAIN = """
class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(-0.5))

    def forward(self, t, z):
        return self.rate * z

neural_ode = NeuralODE(Field(), output_map=lambda z: z + 1)
"""
LOAD = """
import pickle, sys, torch
print(pickle.load(open(sys.argv[1], "rb"))(torch.ones(1, 1)).item())
"""


def test_classes_and_lambdas_of_main_load_in_a_fresh_process(tmp_path):
    session = {"__name__": "__main__", "nn": nn, "torch": torch, "NeuralODE": NeuralODE}
    exec(IN_MAIN, session)
    neural_ode, path = session["neural_ode"], tmp_path / "ode.pkl"
    path.write_bytes(pickle.dumps(neural_ode))
    command = [sys.executable, "-c", LOAD, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert type(neural_ode.vector_field).__module__ == "__main__"
    assert float(output) == neural_ode(torch.ones(1, 1)).item()
