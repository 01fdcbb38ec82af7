"""Problems to try the estimators on: analytic vector fields with known behaviour, and two-dimensional densities."""

from .densities import DENSITIES, density_log_prob, make_density
from .fields import ForcedOscillator, LeadingFeatures, LotkaVolterra, Pendulum, VanDerPol, make_pendulum

__all__ = [
    "DENSITIES",
    "ForcedOscillator",
    "LeadingFeatures",
    "LotkaVolterra",
    "Pendulum",
    "VanDerPol",
    "density_log_prob",
    "make_density",
    "make_pendulum",
]
