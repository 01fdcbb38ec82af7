"""What a hypersolver has to beat: the same estimator without its correction."""

import numpy as np
import torch

from sklearn_hyper.numerics import hypersolve


def test_it_is_the_base_solver(swirl, X):
    plain = swirl.without_correction()
    z = hypersolve(swirl.neural_ode_.vector_field, torch.from_numpy(X), swirl.neural_ode_.t_span, 3, swirl.base_solver_)
    np.testing.assert_array_equal(plain.predict(X), z.numpy())
    assert plain.correction_ is None and swirl.correction_ is not None


def test_its_report_lists_no_hypersolver(swirl, X):
    names = [row.solver for row in swirl.without_correction().solver_report(X)]
    assert names == [row.solver for row in swirl.solver_report(X)][:2]


def test_it_takes_any_base_solver_and_number_of_steps_without_a_warning(swirl, X):
    plain = swirl.without_correction().with_solver("rk4", n_steps=50)
    np.testing.assert_allclose(plain.predict(X), swirl.reference(X), atol=1e-5)
