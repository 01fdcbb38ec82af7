"""Fields with a condition, f(t, z, *, label): what a row is solved with travels beside it and is part of no state."""

import functools

import pytest
import torch
from small_tasks import fit_settings, rows

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import FittedHypersolver, Task, fit_hypersolver, refit_hypersolver
from sklearn_hyper.modules import CorrectionNet, CorrectionSpec, VectorFieldError

LABELS = (0, 1, 2)


def field(t, z, *, label):
    """A rotation whose speed and sense are a label's."""
    speed = torch.tensor([1.0, -1.5, 0.5], dtype=z.dtype, device=z.device)[label]
    return torch.tanh(speed.reshape(-1, 1) * torch.stack([-z[:, 1], z[:, 0]], dim=1) * 2)


def labels(n, seed=1):
    return torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))


def bound(label):
    """The field of one label, as a field without a condition."""
    return NeuralODE(functools.partial(field, label=torch.tensor([label]))).eval()


@pytest.fixture(scope="module", params=["euler", "ab2", "nonstationary"])
def fast(request):
    settings = fit_settings(base_solver=request.param, n_steps=3, max_epochs=20)
    return fit_hypersolver(Task(NeuralODE(field).eval(), rows(90), {"label": labels(90)}), settings)


def of_label(fast, label):
    """The same solver with the label bound by hand."""
    return FittedHypersolver(
        neural_ode=bound(label), method=fast.method, correction=fast.correction, n_steps=fast.n_steps,
        settings=fast.settings, fitted_eps=fast.fitted_eps, errors=fast.errors, delta=fast.delta, history=fast.history,
        net=fast.net, n_samples=fast.n_samples,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["solve", "predict", "trajectory", "reference"])
def test_every_row_is_solved_with_its_label(fast, method):
    x, label = rows(30, seed=5), labels(30, seed=6)
    every = getattr(fast, method)(x, {"label": label})
    rows_first = every.movedim(1, 0) if method == "trajectory" else every
    for one in LABELS:
        own = getattr(of_label(fast, one), method)(x[label == one])
        own = own.movedim(1, 0) if method == "trajectory" else own
        torch.testing.assert_close(rows_first[label == one], own, rtol=1e-5, atol=1e-5)


def test_labels_matter(fast):
    x = rows(30, seed=5)
    states = [fast.solve(x, {"label": torch.full((30,), label)}) for label in LABELS]
    assert min(float((states[i] - states[j]).norm(dim=1).mean()) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_the_fit_is_better_than_its_base_method(fast):
    x, condition = rows(60, seed=5), {"label": labels(60, seed=6)}
    reference = fast.reference(x, condition)
    errors = [
        float((one.solve(x, condition) - reference).norm(dim=1).mean()) for one in (fast, fast.without_correction())
    ]
    assert errors[0] < errors[1]
    assert fast.errors[3]["mean"] < fast.errors[3]["base_mean"]


def test_a_fit_of_one_label_is_that_of_the_field_with_it_bound():
    settings = fit_settings(max_epochs=4)
    label = torch.full((40,), 1)
    conditioned = fit_hypersolver(Task(NeuralODE(field).eval(), rows(40), {"label": label}), settings)
    plain = fit_hypersolver(Task(bound(1), rows(40)), settings)
    x = rows(9, seed=5)
    torch.testing.assert_close(conditioned.solve(x, {"label": label[:9]}), plain.solve(x), rtol=1e-9, atol=1e-9)
    assert conditioned.errors[2]["mean"] == pytest.approx(plain.errors[2]["mean"], rel=1e-6)


def test_what_is_no_tensor_is_the_same_for_all_rows():
    def scaled(t, z, *, rate):
        return -rate * z

    fast = fit_hypersolver(Task(NeuralODE(scaled).eval(), rows(40), {"rate": 1.5}), fit_settings(max_epochs=30))
    x = rows(9, seed=5)
    torch.testing.assert_close(
        fast.reference(x, {"rate": 1.5}), x * torch.exp(torch.tensor(-1.5)), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(fast.solve(x, {"rate": 1.5}), fast.solve(x, {"rate": 1.0}))


def test_conditions_go_with_drawn_rows():
    """Rows whose label does not fit them would leave errors of the base method's size."""
    settings = fit_settings(max_samples=60, max_epochs=60, n_steps=3)
    fast = fit_hypersolver(Task(NeuralODE(field).eval(), rows(300), {"label": labels(300)}), settings)
    assert fast.n_samples == 60 and fast.errors[3]["mean"] < 0.7 * fast.errors[3]["base_mean"]


def test_a_refit_takes_conditions_too():
    first = fit_hypersolver(
        Task(NeuralODE(field).eval(), rows(90), {"label": labels(90)}), fit_settings(n_steps=3, max_epochs=20)
    )
    again = refit_hypersolver(first, rows(60, seed=2), condition={"label": labels(60, seed=3)}, max_epochs=3)
    assert again.n_samples == 60 and again.errors[3]["mean"] < 0.9 * again.errors[3]["base_mean"]


def test_a_missing_condition_is_an_error_of_the_field():
    with pytest.raises(VectorFieldError, match=r"vector_field.*missing 1 required keyword-only argument: 'label'"):
        fit_hypersolver(Task(NeuralODE(field).eval(), rows(40)), fit_settings())


class Gain(CorrectionNet):
    """Knows nothing of labels, and so has to do for all."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, eps, s, z, stages, x, kind):
        return self.gain * z


class GainSpec(CorrectionSpec):
    def build(self, inputs):
        return Gain()

    def get_params(self, deep=True):
        return {}


def test_corrections_of_ones_own_read_no_condition():
    task = Task(NeuralODE(field).eval(), rows(90), {"label": labels(90)})
    fast = fit_hypersolver(task, fit_settings(correction=GainSpec(), n_steps=3, max_epochs=20))
    assert isinstance(fast.correction.net, Gain) and fast.errors[3]["mean"] < fast.errors[3]["base_mean"]


def test_a_number_is_the_same_for_all_rows():
    def scaled(t, z, *, gain):
        return -gain * z

    x, settings = rows(60), fit_settings(n_steps=2, max_epochs=5)
    bound = fit_hypersolver(Task(NeuralODE(lambda t, z: -0.7 * z).eval(), x), settings)
    for gain in (0.7, torch.tensor(0.7, dtype=torch.float64)):
        fast = fit_hypersolver(Task(NeuralODE(scaled).eval(), x, {"gain": gain}), settings)
        torch.testing.assert_close(fast.solve(x, {"gain": gain}), bound.solve(x))


def test_a_condition_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"condition\['label'\] has 5 entries for 40 rows of x"):
        Task(NeuralODE(field).eval(), rows(40), {"label": torch.zeros(5)})


def test_a_report_takes_the_condition_of_every_row():
    x, label = rows(60), torch.arange(60) % 2
    fast = fit_hypersolver(Task(NeuralODE(field).eval(), x, {"label": label}), fit_settings(n_steps=3, max_epochs=20))
    dopri5, base, ours = fast.report(x, condition={"label": label}, batch_size=16)
    assert dopri5.l2_max < 1e-2 and ours.l2_mean < base.l2_mean and (base.nfe, ours.nfe) == (3, 3)
