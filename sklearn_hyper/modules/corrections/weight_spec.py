"""Settings of a correction in the field's own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from ..neural_ode import NeuralODE
from .building import CorrectionSpec, NetInputs, is_positive_integer
from .changes import FullChanges, LowRankChanges, OwnWeights, Schedule, SmoothWeights, learning_unit
from .contract import ModuleCorrection, ScaleSample
from .field_module import FieldModule, changeable_weights
from .weights import FieldWeights, WeightsAndTerm

_FULL_WEIGHTS = 2**18
"""Fields of up to this many weights get full changes by default. Larger ones would overfit, and fill the memory."""
_RANK = 4
_MANY_WEIGHTS, _CAREFUL_SHARE = 2**16, 0.2
"""More free changes than this take a smaller share of the unit: together they would fit the rows, not the solver."""
_WRAPPERS = ("field.", "part.", "vector_field.")
"""Attributes under which wrappers hold a field: for calls with other weights, for copies, and for densities."""


@dataclass
class WeightCorrection(CorrectionSpec):
    r"""A correction in the weights of f: each evaluation calls f with weights of its own, at no cost.

    .. math:: r_i = f(s_k + c_i \epsilon, z; \theta + \epsilon^p \Delta_{k,i})

    It is eq. 5 of the paper with
    :math:`g = [\psi(s, z; \theta + \epsilon^p \Delta) - \psi(s, z; \theta)] / \epsilon^p`. This g stays O(1) as
    eps -> 0, so the order p of the base solver is kept. Delta starts at zero and is trained through
    the solver. For inference it is merged into copies of f: a prediction is K calls of f and the sums between.

    A fit for one number of steps gives every evaluation a Delta of its own. Learned coefficients of the base solver
    then learn on together with it. A fit over several (``fit_n_steps=(a, b)``) learns
    :math:`\Delta = \Delta_0 + \tau \Delta_1 + \epsilon \Delta_2`, linear in time and step size.

    Parameters
    ----------
    rank : int, optional
        Rank of the change of each weight matrix; a kernel counts as a matrix of its outputs by the rest. Vectors, such
        as biases, change freely, and so do matrices that have no more entries than their two factors would. None: free
        changes for fields of up to 262,144 weights, and rank 4 for larger ones, where free ones overfit.
    layers : "all" or list of str, default "all"
        Names of the parameters that change, or beginnings of names, as in ``field.named_parameters()``.
    beside : CorrectionSpec, optional
        A correction g that is trained together with the weights, for what they cannot do:
        :class:`ReachCorrection` for images.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklearn_hyper import HypersolverRegressor, WeightCorrection
    >>> class Field(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = torch.nn.Linear(2, 2)
    ...     def forward(self, t, z):
    ...         return torch.tanh(self.layer(z))
    >>> X = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    >>> fast = HypersolverRegressor(Field(), n_steps=2, correction=WeightCorrection(), random_state=0).fit(X)
    >>> fast.score(X) > fast.without_correction().score(X)
    True
    """

    rank: int | None = None
    layers: Any = "all"
    beside: CorrectionSpec | None = None

    learns_residuals = False
    tunes_method = True

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, with those of ``beside`` as ``beside__name``."""
        own = {"rank": self.rank, "layers": self.layers, "beside": self.beside}
        if deep and self.beside is not None:
            own |= {f"beside__{name}": value for name, value in self.beside.get_params().items()}
        return own

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name."""
        nested = {name.removeprefix("beside__"): params.pop(name) for name in list(params) if "__" in name}
        super().set_params(**params)
        if nested:
            if self.beside is None:
                raise ValueError(f"WeightCorrection.beside is None and has no parameters, got {sorted(nested)}.")
            self.beside.set_params(**nested)
        return self

    def optimizer_for(self, z: Tensor, n_steps: int) -> str:
        """Return "soap", which comes closer in as many epochs, but for a single step on images, where it does not."""
        return "adam" if z.ndim == 4 and n_steps == 1 else "soap"

    def build(self, inputs: NetInputs) -> nn.Module:
        """Not defined: the change is none of a step's inputs, but of the field."""
        raise TypeError("WeightCorrection builds no net; call corrections.")

    def corrections(
        self, neural_odes: Sequence[NeuralODE], inputs: NetInputs, samples: Sequence[ScaleSample]
    ) -> list[ModuleCorrection]:
        """Build the corrections of a fit, one per task, each with changes of its own.

        Raises
        ------
        ValueError
            If a parameter is wrong, or the field has no weights to change.
        """
        schedule: Schedule = OwnWeights.of_steps(inputs.plans)
        if inputs.largest_step is not None:
            schedule = SmoothWeights(samples[0].t_span, inputs.largest_step)
        unit = learning_unit(inputs.base_error)
        changes = [self._changes(ode.vector_field, schedule.n_parts, unit) for ode in neural_odes]
        built: list[ModuleCorrection] = [FieldWeights(one, schedule, recomputes=inputs.recomputes) for one in changes]
        if self.beside is None:
            return built
        terms = self.beside.corrections(neural_odes, inputs, samples)
        return [WeightsAndTerm(weights, term) for weights, term in zip(built, terms, strict=True)]

    def _changes(self, f: Callable[..., Tensor], n_parts: int, unit: float) -> list[nn.Module]:
        tensors = self.chosen_weights(f)
        rank = self.rank
        if rank is None and sum(tensor.numel() for tensor in tensors.values()) > _FULL_WEIGHTS:
            rank = _RANK
        low = {} if rank is None else {name: t for name, t in tensors.items() if _takes_rank(t, rank)}
        full = {name: tensor for name, tensor in tensors.items() if name not in low}
        is_many = sum(tensor.numel() for tensor in full.values()) > _MANY_WEIGHTS
        free_unit = _CAREFUL_SHARE * unit if is_many else unit
        changes: list[nn.Module] = [FullChanges(full, n_parts, free_unit)] if full else []
        return [*changes, LowRankChanges(low, n_parts, int(rank), unit)] if low and rank else changes

    def chosen_weights(self, f: Callable[..., Tensor]) -> dict[str, Tensor]:
        """Return the weights of a field that would change, by name.

        Raises
        ------
        ValueError
            If a parameter is wrong, or there are none.
        """
        if self.rank is not None and not is_positive_integer(self.rank):
            raise ValueError(f"WeightCorrection.rank must be None or an integer >= 1, got {self.rank!r}.")
        if not (self.beside is None or (isinstance(self.beside, CorrectionSpec) and self.beside.learns_residuals)):
            raise ValueError(
                "WeightCorrection.beside must be None or the spec of a net, such as ReachCorrection(), got "
                f"{self.beside!r}."
            )
        named: dict[str, Tensor] = changeable_weights(FieldModule(f))
        if not named:
            raise ValueError(
                "correction=WeightCorrection() changes the weights of the field, and this field has none; take "
                "correction='auto', which adds a net to it."
            )
        if isinstance(self.layers, str) and self.layers == "all":
            return named
        plain = {_own_name(name): name for name in named}
        wrong = not isinstance(self.layers, (list, tuple)) or [
            start for start in self.layers if not any(name.startswith(str(start)) for name in plain)
        ]
        if wrong or not self.layers:
            raise ValueError(
                f"WeightCorrection.layers must be 'all' or a list of names of parameters, or of their beginnings, got "
                f"{self.layers!r}; the field has {sorted(plain)}."
            )
        starts = tuple(str(start) for start in self.layers)
        return {name: named[name] for short, name in plain.items() if short.startswith(starts)}


def _own_name(name: str) -> str:
    """Return a parameter's name as its field has it, without the wrappers of this library."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _takes_rank(tensor: Tensor, rank: int) -> bool:
    """Return whether two thin matrices of this rank have fewer entries than the tensor."""
    if tensor.ndim < 2:
        return False
    n_out, n_in = tensor.flatten(1).shape
    return rank * (n_out + n_in) < n_out * n_in
