"""Say how wrong a hypersolver is: bounds on errors, and tolerances that are kept, calibrated on rows of their own."""

from .calibration import Calibration, NotCalibratedError, UnusualRowsWarning
from .conformal import CalibrationRowsError
from .ladder import Tolerance

__all__ = ["Calibration", "CalibrationRowsError", "NotCalibratedError", "Tolerance", "UnusualRowsWarning"]
