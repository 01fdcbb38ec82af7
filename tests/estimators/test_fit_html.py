"""In a notebook, a fitted hypersolver shows its errors below scikit-learn's diagram."""

import numpy as np
import torch
from sklearn import config_context
from small_hypersolvers import ROUGH_FITS, Swirl, make_classifier, make_learner, make_regressor
from torch import nn

from sklearn_hyper import HypersolverDensity, NeuralODE

pytestmark = ROUGH_FITS


def shown(estimator):
    html, bundle = estimator._repr_html_(), estimator._repr_mimebundle_()["text/html"]
    assert tables(html) == tables(bundle)
    return html


def tables(html):
    """What is ours: from the first line about a solver on."""
    start = html.rfind("</script>")
    return html[start:] if start >= 0 else html


def test_an_unfitted_one_shows_the_diagram_alone():
    for estimator in (make_regressor(), make_classifier()):
        assert "Errors held out" not in shown(estimator) and "n_steps" in shown(estimator)


def test_a_fitted_one_shows_its_solver_and_held_out_errors():
    fast = make_learner().fit(np.random.default_rng(0).uniform(-1, 1, (80, 2)))
    html = shown(fast)
    assert "euler K=2, with MLPCorrection, from 80 rows" in html
    for name in ("mean", "max", "base_mean", "base_max"):
        assert f"<td>{fast.errors_[2][name]:.2g}</td>" in html


def test_without_its_correction_it_shows_the_base_solvers_errors_alone():
    fast = make_learner().fit(np.random.default_rng(0).uniform(-1, 1, (80, 2)))
    html = shown(fast.without_correction())
    assert "without a correction" in html and f"<td>{fast.errors_[2]['base_mean']:.2g}</td>" in html
    assert "<th>mean</th>" not in html


def test_a_correction_of_ones_own_is_named():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, eps, s, z, stages, x=None):
            return self.scale * z

    fast = make_learner(correction=Mine()).fit(np.random.default_rng(0).uniform(-1, 1, (80, 2)))
    assert fast.correction_ is not None and "with Mine" in shown(fast)


def test_a_density_shows_both_directions():
    X = np.random.default_rng(0).normal(size=(60, 2))
    flow = HypersolverDensity(NeuralODE(Swirl()), base_solver="euler", n_steps=2, max_epochs=1, random_state=0)
    html = shown(flow.fit(X))
    assert "sampling: euler K=2" in html and "densities: euler K=2" in html


def test_text_display_stays_text():
    with config_context(display="text"):
        fast = make_regressor()
        assert not hasattr(fast, "_repr_html_") and list(fast._repr_mimebundle_()) == ["text/plain"]
