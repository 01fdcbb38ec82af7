"""Corrections g: contracts, the bound around every net, and the library's own nets.

Read the files in this order to learn what g is: ``contract`` (what a net and a spec must provide), ``bounded`` (units
and cap), ``specs`` (settings), ``nets`` (which compute g), ``folded`` (a net made fast for one step).
"""

from .bounded import BoundedCorrection, Units, fit_units
from .building import CorrectionSpec, NetInputs, build_net
from .contract import (
    CorrectionNet,
    FoldedCorrection,
    ModuleCorrection,
    ScaleSample,
    as_module_correction,
    user_part,
)
from .reach import ReachCorrection
from .specs import ConvCorrection, MLPCorrection, resolve_spec
from .weight_spec import WeightCorrection

__all__ = [
    "BoundedCorrection",
    "ConvCorrection",
    "CorrectionNet",
    "CorrectionSpec",
    "FoldedCorrection",
    "MLPCorrection",
    "ModuleCorrection",
    "NetInputs",
    "ReachCorrection",
    "ScaleSample",
    "Units",
    "WeightCorrection",
    "as_module_correction",
    "build_net",
    "fit_units",
    "resolve_spec",
    "user_part",
]
