"""What pickle and deepcopy refuse by themselves copies, pickles and computes the same."""

import copy
import threading
import warnings

import joblib
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sklearn_hyper import NeuralODE
from sklearn_hyper.modules.copies import PersistenceWarning, check_saveable, freeze, frozen_copy, trained_copies
from sklearn_hyper.modules.serialization import copy_user_code, pack, unpack


class Parametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = parametrizations.spectral_norm(nn.Linear(2, 8))
        self.b = parametrizations.weight_norm(nn.Linear(8, 2))
        self.c = parametrizations.orthogonal(nn.Linear(2, 2))

    def forward(self, t, z):
        return self.c(self.b(torch.tanh(self.a(z))))


class Sparse(nn.Module):
    def __init__(self, layout):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's word on the state of compressed layouts
            self.register_buffer("matrix", torch.tensor([[0.0, -1.0], [2.0, 0.0]]).to_sparse(layout=layout))

    def forward(self, t, z):
        return torch.sparse.mm(self.matrix, z.T).T


class OldWeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.layer = nn.utils.weight_norm(nn.Linear(2, 2))

    def forward(self, t, z):
        return self.layer(z)


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(2, 2), None

    def forward(self, t, z):
        self.last = self.layer(z)
        return self.last


class Around(nn.Module):
    """A module whose child is not Python."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, t, z):
        return self.inner(z)


def _quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make()


def _scripted():
    return Around(_quietly(lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))))


def _traced():
    return Around(_quietly(lambda: torch.jit.trace(nn.Linear(2, 2), torch.zeros(3, 2))))


def _complex():
    module = Around(nn.Linear(2, 2))
    module.phases = torch.randn(3, dtype=torch.complex64).conj()
    return module


MAKERS = {
    "parametrized": Parametrized,
    "sparse": lambda: Sparse(torch.sparse_coo),
    "sparse rows": lambda: Sparse(torch.sparse_csr),
    "sparse columns": lambda: Sparse(torch.sparse_csc),
    "old weight_norm": OldWeightNorm,
    "cached activation": Caching,
    "scripted": _scripted,
    "traced": _traced,
    "compiled": lambda: Around(torch.compile(nn.Linear(2, 2))),
    "complex": _complex,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # importing torch's compiler
]


@pytest.fixture
def z(generator):
    return torch.randn(3, 2, generator=generator)


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def module(request, z):
    made = request.param()
    if "compiled" not in request.node.name:  # uncompiled copies need no compiler
        made(None, z).sum().backward() if list(made.parameters()) else made(None, z)
    return made


@pytest.fixture
def values(module, z):
    eager = module.inner._orig_mod if hasattr(getattr(module, "inner", None), "_orig_mod") else None
    return module.eval()(None, z).detach() if eager is None else eager(z).detach()


def _copies(module):
    ode = NeuralODE(module)
    return {
        "copied": copy_user_code(ode, "ode"),
        "deepcopied": copy.deepcopy(ode),
        "pickled": unpack(pack(ode)),
        "copy of the pickled": copy.deepcopy(unpack(pack(ode))),
    }


def test_copies_compute_the_same(module, values, z):
    for how, copied in _copies(module).items():
        assert torch.equal(copied.vector_field(None, z).detach(), values), how


def test_copies_are_apart_and_train(module, values, z):
    for how, copied in _copies(module).items():
        assert all(parameter.is_leaf for parameter in copied.parameters()), how
        assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in module.parameters()}, how
        if list(copied.parameters()):
            copied.zero_grad()
            copied.vector_field(None, z).sum().backward()
            assert any(parameter.grad is not None for parameter in copied.parameters()), how


def test_pickles_of_equal_modules_are_equal(module):
    once = unpack(pack(module))
    assert joblib.hash(pack(once)) == joblib.hash(pack(unpack(pack(once))))


def test_a_compiled_function_is_pickled_as_the_function_it_was():
    compiled = torch.compile(lambda t, z: -2 * z)
    assert unpack(pack(compiled))(None, 3) == -6


def test_a_scripted_function_pickles(z):
    scripted = _quietly(lambda: torch.jit.script(_negate))
    assert torch.equal(unpack(pack(scripted))(z), -z)


def _negate(z: torch.Tensor) -> torch.Tensor:
    return -z


def test_weights_of_inference_mode_are_copied_to_ones_that_train(z):
    with torch.inference_mode():
        made = nn.Linear(2, 2)
    copied = copy_user_code(made, "field")
    copied(z).sum().backward()
    assert copied.weight.grad is not None


# ---------------------------------------------------------------------- of a Neural ODE and its parts
class PlainTensor:
    """A field that holds a tensor which requires gradients, and is no parameter of a module."""

    def __init__(self):
        self.weight = torch.ones(2, requires_grad=True)

    def __call__(self, t, z):
        return self.weight * z


def test_a_frozen_copy_is_apart_in_eval_mode_and_trains_nothing(z):
    field = Caching()
    ode = NeuralODE(field, output_map=nn.Linear(2, 1)).train()
    frozen = frozen_copy(ode)
    assert torch.equal(frozen(z), ode(z)) and ode.training and all(p.requires_grad for p in ode.parameters())
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not {id(p) for p in frozen.parameters()} & {id(p) for p in ode.parameters()}


def test_freezing_reaches_tensors_that_no_module_knows():
    ode = NeuralODE(PlainTensor())
    assert not frozen_copy(ode).vector_field.weight.requires_grad and ode.vector_field.weight.requires_grad
    assert freeze(ode) is ode and not ode.vector_field.weight.requires_grad


def test_copies_that_are_trained_share_what_the_parts_share():
    shared = nn.Linear(2, 2)
    field, lift = Around(shared), nn.Sequential(shared)
    copied_field, copied_lift, nothing = trained_copies(field, lift, None)
    assert copied_field.inner is copied_lift[0] and copied_field.inner is not shared and nothing is None


def test_a_tensor_that_would_never_be_trained_is_refused():
    with pytest.raises(TypeError, match=r"requires gradients and is no parameter .*weight.*nn.Parameter of a module"):
        trained_copies(PlainTensor(), None, None)


def test_functions_that_hold_modules_cannot_be_copied():
    layer = nn.Linear(2, 2)
    for copied in (lambda f: frozen_copy(NeuralODE(f)), lambda f: trained_copies(f, None, None)):
        with pytest.raises(TypeError, match="vector_field is a function that calls the module layer, which fit could"):
            copied(lambda t, z: layer(z))


class Unsaveable:
    """Holds what no pickle takes."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, t, z):
        return -z


def test_what_cannot_be_saved_is_said_before_a_fit():
    check_saveable(NeuralODE(Caching()))
    ode = NeuralODE(Unsaveable())
    with pytest.warns(
        PersistenceWarning, match=r"cannot be pickled \(TypeError: .*lock.*can be neither saved nor sent"
    ):
        check_saveable(ode)
    with pytest.raises(
        ValueError, match="n_jobs=2 needs to pickle neural_ode, and the field or a map cannot be pickled"
    ):
        check_saveable(ode, needed_for="n_jobs=2")
