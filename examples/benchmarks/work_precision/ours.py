"""Trials of this library's hypersolvers."""

from __future__ import annotations

import warnings

from _solving import evaluated_fields
from sklearn.exceptions import ConvergenceWarning

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.numerics import Nonstationary

from .cells import Trial
from .contenders import GENERALIST_STEPS, Ours
from .loading import LoadedProblem
from .measuring import Measured, Stopwatch, measure
from .place import Place
from .runs import Row, Run


def measure_ours(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """A hypersolver at its own number of steps and at others, its base solver, and whether it fell back to that."""
    contender = trial.contender
    assert isinstance(contender, Ours)
    with warnings.catch_warnings(record=True) as caught, Stopwatch() as watch:
        warnings.simplefilter("always")
        fast = HypersolverRegressor(loaded.neural_ode, random_state=trial.seed, **contender.settings())
        fast.fit(loaded.rows["fit"].numpy())
    facts = watch.facts() | {
        "fallback": fast.correction_ is None or any(issubclass(w.category, ConvergenceWarning) for w in caught),
        "warnings": sorted({str(w.message) for w in caught}),
    }
    place.keep(fast, trial)
    base = _measure_steps(fast.without_correction(), contender.n_steps, loaded)
    # Learned coefficients, and weights for every evaluation, are made for one number of steps.
    is_bent = len(evaluated_fields(fast.module_)) > 1
    others = () if is_bent or isinstance(fast.base_solver_, Nonstationary) else GENERALIST_STEPS
    steps = dict.fromkeys([contender.n_steps, *others])
    return Measured([_measure_steps(fast, n_steps, loaded) for n_steps in steps], facts, base)


def _measure_steps(fast: HypersolverRegressor, n_steps: int, loaded: LoadedProblem) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # step sizes that it was not fitted at are the point
        module = (fast if fast.module_.n_steps == n_steps else fast.with_solver(n_steps=n_steps)).module_
    return measure(loaded, Run(n_steps=n_steps), module.terminal_state, evaluated_fields(module))
