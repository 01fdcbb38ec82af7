"""What displays of one hypersolver share: what they refuse, and when."""

import builtins

import pytest
from sklearn.preprocessing import FunctionTransformer

from sklearn_hyper.evaluation import CoverageDisplay, RowErrorDisplay, TrajectoryDisplay

DISPLAYS = [RowErrorDisplay, CoverageDisplay, TrajectoryDisplay]


@pytest.mark.parametrize("display", DISPLAYS)
def test_what_is_no_hypersolver_is_refused(display, X):
    with pytest.raises(TypeError, match="is needed, got FunctionTransformer"):
        display.from_estimator(FunctionTransformer(), X)


@pytest.mark.parametrize("display", DISPLAYS)
def test_missing_matplotlib_names_the_extra_before_any_work(monkeypatch, display):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=rf'{display.__name__} draws with.*pip install "sklearn_hyper\[plots\]"'):
        display.from_estimator(None, None)
