"""Programs of ``torch.export`` take any number of rows, and making one leaves the module as it was."""

import subprocess
import sys

import pytest
import torch
from small_corrections import make_hypersolved
from small_weights import DOUBLE, Growth, Tied, made, own, smooth, states
from torch import nn

from sklearn_hyper import ConvCorrection, MLPCorrection, NeuralODE
from sklearn_hyper.adapters import from_denoiser, from_velocity
from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.modules.conditioned_fields import ConditionedMLPField
from sklearn_hyper.numerics import resolve_base_solver

GRID = (0.0, 0.3, 0.6, 1.0)
ROWS = {0: torch.export.Dim("rows")}


def export(module, x, condition=None):
    if condition is None:
        return torch.export.export(module, (x,), dynamic_shapes=(ROWS,))
    return torch.export.export(module, (x, condition), dynamic_shapes=(ROWS, dict.fromkeys(condition, ROWS)))


def assert_same_for_any_rows(program, module, x, condition=None):
    for n in (1, 2, len(x)):
        given = (x[:n],) if condition is None else (x[:n], {name: value[:n] for name, value in condition.items()})
        torch.testing.assert_close(program(*given), module(*given), rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------- lengths that a trace would take for constants
class TimesAndLabels(nn.Module):
    """A model of states, times a row and labels a row, as flow matching and diffusion have them."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2, dtype=DOUBLE)

    def forward(self, t, z, label=None):
        pull = 0 if label is None else self.table(label)
        return torch.tanh(z + pull) * t[:, None]


LABELS = torch.arange(7) % 3
NUMBERS = torch.linspace(0, 1, 7, dtype=DOUBLE)
CONDITIONED = {
    "times a row": (lambda: from_velocity(TimesAndLabels()), None),
    "a fixed label": (lambda: from_velocity(TimesAndLabels(), condition={"label": torch.tensor([1])}), None),
    "labels": (lambda: from_velocity(TimesAndLabels(), condition="label"), {"label": LABELS}),
    "noise levels": (lambda: from_denoiser(lambda z, t: z / (1 + t[:, None]), "x0", schedule=(0.1, 10.0)), None),
    "embedded labels": (
        lambda: NeuralODE(ConditionedMLPField(2, {"label": LABELS}, {"label": 3}).double()),
        {"label": LABELS},
    ),
    "embedded numbers": (
        lambda: NeuralODE(ConditionedMLPField(2, {"rate": NUMBERS}, {}).double()),
        {"rate": NUMBERS},
    ),
}


@pytest.mark.parametrize(("make", "condition"), CONDITIONED.values(), ids=CONDITIONED)
def test_fields_of_adapters_and_conditions_export(make, condition):
    ode = make().eval()
    start, end = ode.t_span
    module = HypersolvedODE(ode, resolve_base_solver("euler"), None, (start, (start + end) / 2, end)).fold()
    assert_same_for_any_rows(export(module, states(), condition).module(), module, states(), condition)


# ---------------------------------------------------------------------- what a trace leaves behind
CHANGED = {
    "full": (Tied, lambda f: own(f, std=0.1)),
    "low rank": (Tied, lambda f: own(f, std=0.1, rank=1)),
    "smooth": (Growth, lambda f: smooth(f, n_steps=3, std=0.1)),
}


def with_changed_weights(kind):
    make, change = CHANGED[kind]
    ode = made(make)
    return HypersolvedODE(ode, resolve_base_solver("ab2"), change(ode.vector_field), (0.0, 1 / 3, 2 / 3, 1.0)).eval()


@pytest.mark.parametrize("kind", CHANGED)
@pytest.mark.parametrize("has_run", [False, True], ids=["fresh", "used"])
def test_a_module_that_was_exported_runs_as_before(kind, has_run):
    module = with_changed_weights(kind)
    expected = with_changed_weights(kind)(states())
    if has_run:
        module(states())
    program = export(module, states()).module()
    assert torch.equal(module(states()), expected)  # tensors of the trace have no values to compare
    assert_same_for_any_rows(program, module, states())


# ---------------------------------------------------------------------- compiled packages
PACKAGED = {
    "changed weights": lambda: (with_changed_weights("full"), states()),
    "image": lambda: make_hypersolved("image", "heun", ConvCorrection(hidden=3), GRID),
    "controlled": lambda: make_hypersolved("controlled", "ab2", MLPCorrection(hidden=6), GRID),
}
RUN = """
import sys
sys.modules.update(dict.fromkeys(["sklearn", "torchdiffeq", "sklearn_hyper"]))  # importing one of them is an error
import torch
run = torch._inductor.aoti_load_package("package.pt2")
x = torch.load("x.pt")
torch.save([run(x[:n]) for n in (1, 2, len(x))], "found.pt")
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch compiles with parts of its own that it deprecates
@pytest.mark.parametrize("case", PACKAGED)
def test_a_compiled_package_takes_any_rows_and_runs_without_this_package(case, tmp_path):
    """Half a minute each, with a C++ compiler."""
    live, x = PACKAGED[case]()
    module = live.fold()
    torch._inductor.aoti_compile_and_package(export(module, x), package_path=str(tmp_path / "package.pt2"))
    torch.save(x, tmp_path / "x.pt")
    subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, check=True)
    for n, found in zip((1, 2, len(x)), torch.load(tmp_path / "found.pt"), strict=True):
        torch.testing.assert_close(found, module(x[:n]), rtol=1e-10, atol=1e-12)
