"""Writing a fitted hypersolver as an ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from .. import __version__
from ..modules.onnx_export import FirstOutput, check_target, require_onnx, write_onnx

_PARITY_ROWS = 16


class OnnxExportMixin:
    """``export_onnx`` of the hypersolvers that predict."""

    def export_onnx(self, path: str | os.PathLike[str], *, X: Any = None, preprocessed: bool = False) -> Path:
        """Write the fitted solver as an ONNX file, which runs without torch and without this package.

        The file takes ``X`` of shape (n_samples, ...) in ``dtype_``, any number of rows. It gives what ``predict`` gives,
        as ``output``; a classifier's gives ``logits`` and ``probabilities``, and has its ``classes`` as a JSON list among the
        metadata, in the order of the columns (and the ``threshold`` of a binary skorch net). It needs the ``onnx`` extra: ``pip install "sklearn-hyper[onnx]"``.

        Parameters
        ----------
        path : str or path
            The file to write; an older one is replaced at once, when the new one is complete.
        X : array-like of shape (n_samples, ...), optional
            Rows on which ONNX Runtime is compared with torch before the file is written: at most 1e-4 (float32) or 1e-7
            (float64) of the largest output apart. Missing: draws of a standard normal.
        preprocessed : bool, default False
            The steps of a Pipeline that were passed with the Neural ODE do not become part of the file. True says that you
            know: the file then takes what ``preprocess_.transform(X)`` returns.

        Returns
        -------
        Path

        Raises
        ------
        ImportError
            If the extra is not installed.
        ValueError
            If the field, a map or the correction cannot be traced by torch or run by ONNX Runtime; if there are frozen
            steps and ``preprocessed`` is False; or if the path's folder does not exist.
        RuntimeError
            If ONNX Runtime and torch disagree. No file is written then.
        """
        target = check_target(path)
        require_onnx()
        module, outputs, metadata = self._onnx_outputs()
        if self.preprocess_ is not None and not preprocessed:
            raise ValueError(
                f"the steps before the Neural ODE, {self.preprocess_!r}, cannot become part of the file, which would take "
                "their output. Pass preprocessed=True to say that you feed it preprocess_.transform(X)."
            )
        if X is None:
            X = np.random.default_rng(0).normal(size=(_PARITY_ROWS, *self._input_shape))
        else:
            X = self._prepare_X(X, reset=False)
        rows = self._to_tensor(X, self.dtype_, "cpu")
        metadata = {"sklearn_hyper_version": __version__, **metadata}
        write_onnx(module.cpu().eval(), rows, target, outputs=outputs, metadata=metadata)
        return target

    def _onnx_outputs(self) -> tuple[nn.Module, list[str], dict[str, str]]:
        """The module to export, the names of its outputs, and what the file has to say about them."""
        module = self._copy_folded()
        return (FirstOutput(module) if self._squeeze_output else module), ["output"], {}
