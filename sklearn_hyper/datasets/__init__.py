"""Small analytic vector fields to try things on: cheap, smooth, and with known behaviour."""

from .fields import ForcedOscillator, LeadingFeatures, LotkaVolterra, Pendulum, VanDerPol, make_pendulum

__all__ = ["ForcedOscillator", "LeadingFeatures", "LotkaVolterra", "Pendulum", "VanDerPol", "make_pendulum"]
