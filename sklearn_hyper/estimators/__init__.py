"""scikit-learn estimators. The only ring that imports sklearn.base."""

from ..modules.copies import PersistenceWarning
from ..modules.field_probes import GradientWarning
from ..modules.model_file import ModelFileError
from ..training.flow_fitting import StiffFlowWarning
from ..training.nets import TrainingDivergedError
from ._base import SolverAgreementWarning, UnsolvedRowsWarning, VersionMismatchWarning
from ._conditions import ConditionError
from .flows import ContinuousNormalizingFlow
from .hypersolver_classifier import HypersolverClassifier
from .hypersolver_density import HypersolverDensity
from .hypersolver_regressor import HypersolverRegressor
from .neural_ode import NeuralODEClassifier, NeuralODERegressor
from .saved_models import load

__all__ = [
    "ConditionError",
    "ContinuousNormalizingFlow",
    "GradientWarning",
    "HypersolverClassifier",
    "HypersolverDensity",
    "HypersolverRegressor",
    "ModelFileError",
    "NeuralODEClassifier",
    "NeuralODERegressor",
    "PersistenceWarning",
    "SolverAgreementWarning",
    "StiffFlowWarning",
    "TrainingDivergedError",
    "UnsolvedRowsWarning",
    "VersionMismatchWarning",
    "load",
]
