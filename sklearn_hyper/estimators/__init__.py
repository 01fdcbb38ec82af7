"""scikit-learn estimators. The only ring that imports sklearn.base."""

from ..training.flow_fitting import StiffFlowWarning
from ..training.nets import TrainingDivergedError
from ._base import SolverAgreementWarning, UnsolvedRowsWarning, VersionMismatchWarning
from .flows import ContinuousNormalizingFlow
from .hypersolver import HypersolverClassifier, HypersolverRegressor
from .hypersolver_density import HypersolverDensity
from .neural_ode import NeuralODEClassifier, NeuralODERegressor

__all__ = [
    "ContinuousNormalizingFlow",
    "HypersolverClassifier",
    "HypersolverDensity",
    "HypersolverRegressor",
    "NeuralODEClassifier",
    "NeuralODERegressor",
    "SolverAgreementWarning",
    "StiffFlowWarning",
    "TrainingDivergedError",
    "UnsolvedRowsWarning",
    "VersionMismatchWarning",
]
