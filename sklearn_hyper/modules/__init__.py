"""Torch modules: Neural ODEs, vector fields, corrections, and the modules that a fit returns."""

from .corrections import (
    BoundedCorrection,
    ConvCorrection,
    CorrectionNet,
    CorrectionSpec,
    MLPCorrection,
    NetInputs,
    ReachCorrection,
    ScaleSample,
    Units,
    WeightCorrection,
)
from .divergence import LogDensityField
from .flow import Flow, LogDensity
from .hypersolved_ode import FoldedODE, HypersolvedODE
from .neural_ode import NeuralODE, VectorFieldError
from .row_parallel import RowParallel
from .vector_fields import AugmentedInput, ConvVectorField, MLPVectorField, Rescale, Standardize

__all__ = [
    "AugmentedInput",
    "BoundedCorrection",
    "ConvCorrection",
    "ConvVectorField",
    "CorrectionNet",
    "CorrectionSpec",
    "Flow",
    "FoldedODE",
    "HypersolvedODE",
    "LogDensity",
    "LogDensityField",
    "MLPCorrection",
    "MLPVectorField",
    "NetInputs",
    "NeuralODE",
    "ReachCorrection",
    "Rescale",
    "RowParallel",
    "ScaleSample",
    "Standardize",
    "Units",
    "VectorFieldError",
    "WeightCorrection",
]
