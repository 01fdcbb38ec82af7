"""Neural ODEs of torchdyn."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..modules.neural_ode import NeuralODE
from .contract import Adapter


def from_torchdyn(node: nn.Module, *, t_span: tuple[float, float] | None = None) -> NeuralODE:
    """Return the Neural ODE of a torchdyn ``NeuralODE`` or ``DEFunc``.

    The contract: ``node.vf``, or ``node`` itself, is called as ``vf(t, x)`` and returns dx/dt; order 2 and higher is
    its own matter. Modules inside that have an attribute ``t`` (DepthCat) or ``_control`` (DataControl) get the time
    and the input.

    Parameters
    ----------
    node : nn.Module
        A trained ``NeuralODE``, or the ``DEFunc`` inside. It is copied and frozen.
    t_span : pair of float, optional
        Start and end of the solve. If missing: those of ``node.t_span``, or (0, 1).

    Returns
    -------
    NeuralODE
        In eval mode; data-controlled if the field has a DataControl, whose control is the input, as in torchdyn. Layers
        around the node (Augmenter, a read-out) go in by ``NeuralODE(ode.vector_field, input_map=...,
        output_map=...)``.

    Raises
    ------
    TypeError
        If ``node`` is no module with a field.
    ValueError
        If the field integrates more than the state: a trace estimate, or an integral loss.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.adapters import from_torchdyn
    >>> class Node(torch.nn.Module):  # stands for torchdyn.core.NeuralODE
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.vf, self.t_span = Field(), torch.linspace(0, 2, 2)
    >>> class Field(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Linear(2, 2)
    ...
    ...     def forward(self, t, x, args={}):
    ...         return self.net(x)
    >>> from_torchdyn(Node()).t_span
    (0.0, 2.0)
    """
    if not isinstance(node, nn.Module):
        raise TypeError(f"node must be a torchdyn NeuralODE or DEFunc, got {node!r}.")
    is_node = hasattr(node, "t_span") or hasattr(node, "solver")
    field = node.vf if is_node and hasattr(node, "vf") else node
    _refuse_extra_states(field)
    if t_span is None:
        times = getattr(node, "t_span", None)
        t_span = (0.0, 1.0) if times is None else (float(times[0]), float(times[-1]))
    adapter = TorchdynField(field)  # type: ignore[arg-type]
    return NeuralODE(adapter, t_span=t_span, data_controlled=bool(adapter.controls)).eval()


def _refuse_extra_states(field: Any) -> None:
    if any(hasattr(module, "trace_estimator") for module in field.modules()):
        raise ValueError(
            "node integrates a trace beside the state (a CNF): pass the net inside, node.vf.vf.net for example, as "
            "NeuralODE(net), to HypersolverDensity, which integrates the trace itself."
        )
    if getattr(field, "integral_loss", None) is not None:
        raise ValueError(
            "node integrates an integral_loss beside the state, which was for training: set "
            "node.vf.integral_loss = None."
        )


class TorchdynField(Adapter):
    """A field of torchdyn, whose modules get the time and the control as it expects."""

    def __init__(self, field: nn.Module):
        super().__init__(field)
        self._forget()

    @property
    def controls(self) -> list[nn.Module]:
        """Modules that read the input beside the state."""
        return [module for module in self.model.modules() if hasattr(module, "_control")]

    def velocity(self, t: Tensor, z: Tensor, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        modules = list(self.model.modules())
        for module in modules:
            if hasattr(module, "_control"):
                module._control = inputs[0]
            if hasattr(module, "t"):  # also where the field is no DEFunc, which would set it
                module.t = t
        try:
            return self.model(t, z)
        finally:
            self._forget()

    def _forget(self) -> None:
        """Drop what calls leave in modules: kept tensors would be copied, saved and exported with them."""
        for module in self.model.modules():
            for name in ("_control", "t"):
                if hasattr(module, name):
                    setattr(module, name, None)
            if isinstance(getattr(module, "nfe", None), (int, float)):
                module.nfe = 0.0
