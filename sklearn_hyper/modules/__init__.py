"""Torch modules: the Neural ODE, fields, corrections, and what a fit makes of them."""

from .corrections import BoundedCorrection, ConvCorrection, MLPCorrection
from .hypersolved_ode import HypersolvedODE
from .neural_ode import NeuralODE, VectorFieldError
from .vector_fields import AugmentedInput, ConvVectorField, MLPVectorField, Rescale, Standardize

__all__ = [
    "AugmentedInput",
    "BoundedCorrection",
    "ConvCorrection",
    "ConvVectorField",
    "HypersolvedODE",
    "MLPCorrection",
    "MLPVectorField",
    "NeuralODE",
    "Rescale",
    "Standardize",
    "VectorFieldError",
]
