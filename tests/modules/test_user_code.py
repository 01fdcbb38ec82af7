"""What a callable reaches, by whatever path: found, refused or registered, and known to cache keys."""

import collections
import functools
import sys
import types

import pytest
import torch
from torch import nn

from sklearn_hyper import NeuralODE
from sklearn_hyper.modules.user_code import describe_code, find_hidden_modules, refuse_state_in_functions, walk

GLOBAL_NET = nn.Linear(2, 2)
SPACE = types.SimpleNamespace(net=nn.Linear(2, 2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def velocity(self, t, z):
        return self.layer(z)

    forward = velocity


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, t, z):
        return self.net(t, z)

    def velocity(self, t, z):
        return self.net(t, z)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net

    def __call__(self, t, z):
        return self.net(t, z)


class ListOfLayers(nn.Module):
    """Layers in a plain list, which ``parameters()`` does not see."""

    def __init__(self, net):
        super().__init__()
        self.layers = [{"first": (net,)}]

    def forward(self, t, z):
        return self.layers[0]["first"][0](t, z)


class UsesAGlobal:
    def __call__(self, t, z):
        return self.inner(z)

    def inner(self, z):
        return GLOBAL_NET(z)


class OfTheClass(nn.Module):
    NETS = (nn.Linear(2, 2),)

    def forward(self, t, z):
        return self.NETS[0](z)


class Config:
    """A class that is used as a namespace."""

    net = nn.Linear(2, 2)

    @classmethod
    def velocity(cls, t, z):
        return cls.net(z)


def uses_a_class(t, z):
    return Config.net(z)


def imports_inside(t, z):
    import fields_of_a_user.deep

    return fields_of_a_user.deep.net(z)


class HasALog(nn.Module):
    """Its method has the name of a function of torch, and uses a global module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t, z):
        return torch.log(1 + self.layer(z).square())

    def log(self, z):
        return GLOBAL_NET(z)


class KeepsALambda(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.call = lambda t, z: self.net(t, z)

    def forward(self, t, z):
        return self.call(t, z)


class MentionsNothing(nn.Module):
    """Its attribute has the name of a global module, which it does not use; another method uses one."""

    def __init__(self):
        super().__init__()
        self.GLOBAL_NET = nn.Linear(2, 2)

    def forward(self, t, z):
        return self.GLOBAL_NET(z)

    def pretrain(self):
        return SPACE.net


def call(t, z, net):
    return net(t, z)


def uses_a_global(t, z):
    return GLOBAL_NET(z)


def uses_a_namespace(t, z):
    return SPACE.net(z)


def calls_another(t, z):
    return uses_a_global(t, z)


def nested(net):
    def inner(t, z):
        return net(t, z)

    return lambda t, z: sum(inner(t, z) for _ in range(1))


def with_keyword_default(net):
    def f(t, z, *, net=net):
        return net(t, z)

    return f


def with_attribute(net):
    def f(t, z):
        return f.net(t, z)

    f.net = net
    return f


HELD = {
    "bound method": lambda net: net.velocity,
    "bound method of a holder": lambda net: Holder(net).velocity,
    "object": Holder,
    "slots": Slotted,
    "partial, keyword": lambda net: functools.partial(call, net=net),
    "partial of a partial": lambda net: functools.partial(functools.partial(call, net=net)),
    "list in a module": ListOfLayers,
    "deque in an object": lambda net: Holder(collections.deque([net])[0]),
}
IN_FUNCTIONS = {
    "closure": (lambda net: lambda t, z: net(t, z), "net"),
    "closure over a list": (lambda net: (lambda nets: lambda t, z: nets[0](t, z))([net]), r"nets\[0\]"),
    "closure over a dict": (lambda net: (lambda nets: lambda t, z: nets["a"](t, z))({"a": net}), "nets.a"),
    "closure over a holder": (lambda net: (lambda h: lambda t, z: h(t, z))(Holder(net)), "h.net"),
    "closure over a bound method": (lambda net: (lambda m: lambda t, z: m(t, z))(net.velocity), "m.__self__"),
    "inner function": (nested, "net"),
    "default": (lambda net: lambda t, z, net=net: net(t, z), "net"),
    "keyword default": (with_keyword_default, "net"),
    "attribute": (with_attribute, "net"),
    "global": (lambda net: uses_a_global, "GLOBAL_NET"),
    "global namespace": (lambda net: uses_a_namespace, "SPACE.net"),
    "global of a function that is called": (lambda net: calls_another, "GLOBAL_NET"),
    "global of a method": (lambda net: UsesAGlobal(), "GLOBAL_NET"),
    "class": (lambda net: uses_a_class, r"Config\.net"),
    "class method": (lambda net: Config.velocity, "net"),
    "package": (lambda net: imports_inside, r"deep\.net"),
    "lambda in a module": (KeepsALambda, "self"),
    "attribute of a class": (lambda net: OfTheClass(), r"NETS\[0\]"),
    "partial of a function": (lambda net: functools.partial(uses_a_global), "GLOBAL_NET"),
}


@pytest.mark.parametrize("make", HELD.values(), ids=HELD)
def test_what_objects_hold_is_registered(make):
    net = Net()
    part = make(net)
    refuse_state_in_functions({"f": part})
    ode = NeuralODE(part)
    assert {id(p) for p in net.parameters()} <= {id(p) for p in ode.parameters()}
    assert not ode.eval().training and not net.training
    assert ode(torch.zeros(1, 2)).shape == (1, 2)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """A package of the user's, with a module inside."""
    outer, inner = types.ModuleType("fields_of_a_user"), types.ModuleType("fields_of_a_user.deep")
    outer.deep, inner.net = inner, nn.Linear(2, 2)
    monkeypatch.setitem(sys.modules, outer.__name__, outer)
    monkeypatch.setitem(sys.modules, inner.__name__, inner)


@pytest.mark.parametrize("make, path", IN_FUNCTIONS.values(), ids=IN_FUNCTIONS)
def test_what_functions_hold_is_refused(make, path):
    part = make(Net())
    what = "is" if isinstance(part, types.FunctionType) else "holds"
    with pytest.raises(
        TypeError, match=rf"vector_field {what} a function that calls the module .*{path}.*Pass the module"
    ):
        refuse_state_in_functions({"vector_field": part})


def test_trained_tensors_in_functions_are_refused():
    weight = torch.eye(2, requires_grad=True)
    with pytest.raises(TypeError, match="uses the tensor that requires gradients weight"):
        refuse_state_in_functions({"vector_field": lambda t, z: z @ weight})
    constant = torch.eye(2)
    refuse_state_in_functions({"vector_field": lambda t, z: z @ constant})


def test_names_alone_reach_nothing():
    part = MentionsNothing()
    refuse_state_in_functions({"f": part})
    assert find_hidden_modules({"f": part}) == []


def test_a_function_of_a_library_is_no_method_of_that_name():
    refuse_state_in_functions({"f": HasALog()})


def test_a_method_of_a_partial_is_walked():
    bound = types.MethodType(functools.partial(lambda net, self, t, z: net(t, z), Net()), Holder(None))
    assert any(isinstance(reached.value, Net) for reached in walk(bound, "f"))


def test_registered_modules_are_not_hidden():
    shared = nn.Linear(2, 2)
    parts = {"vector_field": nn.Sequential(shared), "output_map": Holder(shared)}
    assert find_hidden_modules(parts) == []


def test_cycles_end():
    holder = Holder(None)
    holder.net = holder
    assert sum(reached.value is holder for reached in walk(holder, "f")) == 1


def _described(source):
    namespace = {"__name__": "somebodys_fields"}
    exec(source, namespace)
    return repr(describe_code({"f": namespace["f"]}))


@pytest.mark.parametrize(
    "before, after",
    [
        ("R = 1.0\ndef f(t, z): return -R * z", "R = 3.0\ndef f(t, z): return -R * z"),
        ("def g(z): return -z\ndef f(t, z): return g(z)", "def g(z): return -3 * z\ndef f(t, z): return g(z)"),
        ("C = {'rate': 1}\ndef f(t, z): return -C['rate'] * z", "C = {'rate': 2}\ndef f(t, z): return -C['rate'] * z"),
        ("def f(t, z, rate=1.0): return -rate * z", "def f(t, z, rate=2.0): return -rate * z"),
        (
            "class B:\n  def g(self, z): return -z\nclass F(B):\n  def __call__(self, t, z): return self.g(z)\nf = F()",
            "class B:\n  def g(self, z): return z\nclass F(B):\n  def __call__(self, t, z): return self.g(z)\nf = F()",
        ),
        (
            "class F:\n  rate = 1.0\n  def __call__(self, t, z): return -self.rate * z\nf = F()",
            "class F:\n  rate = 2.0\n  def __call__(self, t, z): return -self.rate * z\nf = F()",
        ),
        (
            "def make(rate):\n  def f(t, z): return -rate * z\n  return f\nf = make(1.0)",
            "def make(rate):\n  def f(t, z): return -rate * z\n  return f\nf = make(2.0)",
        ),
    ],
    ids=["constant", "helper", "dictionary", "default", "base class", "attribute of a class", "closure"],
)
def test_descriptions_tell_edits_apart_and_nothing_else(before, after):
    assert _described(before) == _described(before)
    assert _described(before) != _described(after)
