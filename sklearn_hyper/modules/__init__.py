"""Torch modules: the Neural ODE, fields, corrections, and what a fit makes of them."""

from .correction_specs import ConvCorrection, MLPCorrection
from .corrections import BoundedCorrection
from .divergence import LogDensityField
from .flow import Flow, LogDensity
from .hypersolved_ode import FoldedODE, HypersolvedODE
from .neural_ode import NeuralODE, VectorFieldError
from .vector_fields import AugmentedInput, ConvVectorField, MLPVectorField, Rescale, Standardize

__all__ = [
    "AugmentedInput",
    "BoundedCorrection",
    "ConvCorrection",
    "ConvVectorField",
    "Flow",
    "FoldedODE",
    "HypersolvedODE",
    "LogDensity",
    "LogDensityField",
    "MLPCorrection",
    "MLPVectorField",
    "NeuralODE",
    "Rescale",
    "Standardize",
    "VectorFieldError",
]
