"""Corrections g: contracts, the bound around every net, and the library's own nets.

A reader who wants to know what g is reads these files in this order: ``contract`` (what a net and a spec have to
offer), ``bounded`` (units and cap), ``specs`` (what a user sets), ``nets`` (what computes g), ``folded`` (what is left
of it in one step).
"""

from .bounded import BoundedCorrection, Units, fit_units
from .contract import (
    CorrectionNet,
    CorrectionSpec,
    FoldedCorrection,
    ModuleCorrection,
    NetInputs,
    ScaleSample,
    as_module_correction,
    build_net,
    user_part,
)
from .specs import ConvCorrection, MLPCorrection, resolve_spec

__all__ = [
    "BoundedCorrection",
    "ConvCorrection",
    "CorrectionNet",
    "CorrectionSpec",
    "FoldedCorrection",
    "MLPCorrection",
    "ModuleCorrection",
    "NetInputs",
    "ScaleSample",
    "Units",
    "as_module_correction",
    "build_net",
    "fit_units",
    "resolve_spec",
    "user_part",
]
