"""scikit-learn estimators. The only ring that imports sklearn.base."""

from .hypersolver import HypersolverClassifier, HypersolverRegressor
from .neural_ode import NeuralODEClassifier, NeuralODERegressor

__all__ = ["HypersolverClassifier", "HypersolverRegressor", "NeuralODEClassifier", "NeuralODERegressor"]
