"""Say how wrong a hypersolver is: bounds on errors, and tolerances that are kept, calibrated on rows of their own."""

from .bounds import LEARNED, VERIFIED
from .calibration import Calibration, NotCalibratedError, UnusualRowsWarning
from .conformal import CalibrationRowsError
from .ladder import Tolerance
from .measuring import OUTPUT, STATE, TRAJECTORY

__all__ = [
    "LEARNED",
    "OUTPUT",
    "STATE",
    "TRAJECTORY",
    "VERIFIED",
    "Calibration",
    "CalibrationRowsError",
    "NotCalibratedError",
    "Tolerance",
    "UnusualRowsWarning",
]
