"""A field whose evaluations several processes share, each for some of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call


class _TakeRows(torch.autograd.Function):
    """Take this process's rows. Other processes have the gradients of the others, so that all are put together."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.n_rows = len(values)
        return values[_own_rows(len(values))]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _JoinRows.apply(gradient, ctx.n_rows)


class _JoinRows(torch.autograd.Function):
    """Put the rows of all processes together. All compute the same with them, so that each has its gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n_rows: int) -> Tensor:
        sizes = _sizes(n_rows)
        # Messages have one length, which the parts of some processes miss by a row.
        missing = own.new_zeros(sizes[0] - len(own), *own.shape[1:])
        sent = torch.cat([own, missing])
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _TakeRows.apply(gradient), None


class _SumGradients(torch.autograd.Function):
    """What all rows share, weights and the time, whose gradients are summed over the rows of all processes.

    It is one function of all of them, so that every process sums all gradients, in one order: of a tensor that no row
    of its own used, it sums zeros.
    """

    @staticmethod
    def forward(ctx: Any, *shared: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in shared)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        totals = tuple(gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients)
        for total in totals:
            dist.all_reduce(total)
        return totals


def _sizes(n_rows: int) -> list[int]:
    """Return how many rows each process takes, the largest number first."""
    every, over = divmod(n_rows, dist.get_world_size())
    return [every + (rank < over) for rank in range(dist.get_world_size())]


def _own_rows(n_rows: int) -> slice:
    sizes, rank = _sizes(n_rows), dist.get_rank()
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


class RowParallel(nn.Module):
    """A vector field whose evaluations are split over the processes of ``torch.distributed``, by rows.

    Every process runs the same program on all rows: ``fit``, ``predict``, a solve. Wherever it evaluates the field, it
    computes a part of the rows and gets the others from the other processes. So results are those of one process, up
    to rounding. Values and gradients cross between processes in every evaluation, which pays for large fields only.

    Without a process group, or with fewer rows than processes, it calls the field.

    Parameters
    ----------
    vector_field : callable
        The field. It must treat each row as one sample: BatchNorm in training would see a part of the batch.

    Notes
    -----
    All processes have to make the same calls, or they wait for each other for ever. Give them the same rows, an integer
    as ``random_state``, and models made from the same seed. A process may lack rows for some weights, not for all.
    ``solver_report`` times solves, which no two processes do equally often: call it after ``destroy_process_group``.

    Examples
    --------
    In a script, started by ``torchrun --nproc-per-node=2 script.py``, two lines make a fit one of two processes:

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo")  # doctest: +SKIP
    >>> import torch
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.modules import MLPVectorField, RowParallel
    >>> _ = torch.manual_seed(0)
    >>> field = RowParallel(MLPVectorField(2))
    >>> X = torch.linspace(-1, 1, 40).reshape(20, 2)
    >>> fast = HypersolverRegressor(field, n_steps=2, max_epochs=10, random_state=0).fit(X)
    >>> fast.predict(X).shape
    (20, 2)
    """

    def __init__(self, vector_field: Callable[..., Tensor]):
        super().__init__()
        if not callable(vector_field):
            raise TypeError(f"vector_field must be callable as f(t, z), got {vector_field!r}.")
        self.vector_field = vector_field

    def forward(self, t: Tensor, z: Tensor, *arguments: Any, **condition: Any) -> Tensor:
        """Return f(t, z) of all rows."""
        n_rows = len(z)
        if not dist.is_initialized() or not 1 < dist.get_world_size() <= n_rows:
            return self.vector_field(t, z, *arguments, **condition)

        def is_by_row(value: Any) -> bool:
            return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n_rows

        def is_shared(value: Any) -> bool:
            return learns and isinstance(value, Tensor) and value.requires_grad and not is_by_row(value)

        def own(value: Any) -> Any:
            if is_by_row(value):
                return _TakeRows.apply(value)
            return next(summed) if is_shared(value) else value

        learns, arguments = torch.is_grad_enabled(), (t, z, *arguments)
        weights = self._weights() if learns else {}
        shared = [value for value in (*arguments, *condition.values()) if is_shared(value)] + list(weights.values())
        summed = iter(_SumGradients.apply(*shared) if shared else ())
        # In the order of ``shared``: arguments, conditions, weights.
        arguments = tuple(own(value) for value in arguments)
        condition = {name: own(value) for name, value in condition.items()}
        return _JoinRows.apply(self._call(dict(zip(weights, summed, strict=True)), arguments, condition), n_rows)

    def _weights(self) -> dict[str, Tensor]:
        """Return the field's weights that get gradients."""
        if not isinstance(self.vector_field, nn.Module):
            return {}
        return {name: weight for name, weight in self.vector_field.named_parameters() if weight.requires_grad}

    def _call(self, weights: dict[str, Tensor], arguments: tuple[Any, ...], condition: dict[str, Any]) -> Tensor:
        field = self.vector_field
        if weights and isinstance(field, nn.Module):
            return functional_call(field, weights, arguments, condition)
        return field(*arguments, **condition)
