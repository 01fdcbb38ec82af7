"""scikit-learn estimators. The only ring that imports sklearn.base."""

from ..modules.field_probes import GradientWarning
from ..training.flow_fitting import StiffFlowWarning
from ..training.nets import TrainingDivergedError
from ._base import SolverAgreementWarning, UnsolvedRowsWarning, VersionMismatchWarning
from ._copies import PersistenceWarning
from .flows import ContinuousNormalizingFlow
from .hypersolver import HypersolverClassifier, HypersolverRegressor
from .hypersolver_density import HypersolverDensity
from .neural_ode import NeuralODEClassifier, NeuralODERegressor

__all__ = [
    "ContinuousNormalizingFlow",
    "GradientWarning",
    "HypersolverClassifier",
    "HypersolverDensity",
    "HypersolverRegressor",
    "NeuralODEClassifier",
    "NeuralODERegressor",
    "PersistenceWarning",
    "SolverAgreementWarning",
    "StiffFlowWarning",
    "TrainingDivergedError",
    "UnsolvedRowsWarning",
    "VersionMismatchWarning",
]
