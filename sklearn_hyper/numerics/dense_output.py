"""States between the steps of a solve: Hermite interpolation of our own, and the polynomials of dopri5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tensors import per_row

_LEAST_SHARE = 0.5
"""Length of a neighbouring step, as a share of a step's own, from which on its other end helps to interpolate. From
nodes that lie close together, the formula extrapolates their errors: a tenth as far apart, 70 times over."""
_ULPS = 16
"""A time that is so many roundings from a node is the node's: 0.1 * 3 and 0.3 are one time."""


class Node(NamedTuple):
    """Where steps of some rows begin or end."""

    rows: Tensor
    s: Tensor
    z: Tensor
    slope: Tensor
    """f there."""


def interpolate(nodes: Sequence[Node], times: Tensor) -> Tensor:
    """Return states at these times by cubic Hermite interpolation between nodes, time first.

    Parameters
    ----------
    nodes : sequence of Node
        Of each row in the order of its steps. The last holds all rows.
    times : Tensor of shape (n,) or (batch, n)
        After the start, up to the end: for all rows, or for each its own.
    """
    z, slope = torch.zeros_like(nodes[-1].z), torch.zeros_like(nodes[-1].z)
    s = torch.full_like(nodes[-1].s, torch.nan)  # before a row's first node, no time is within a step
    states = z.expand(times.shape[-1], *z.shape).clone()
    for node in nodes:
        length = node.s - s[node.rows]
        own = times if times.ndim == 1 else times[node.rows]
        shares = (own - s[node.rows, None]) / length[:, None]
        i, k = ((shares > 0) & (shares <= 1)).nonzero(as_tuple=True)
        rows, share, unit = node.rows[i], per_row(shares[i, k].to(z.dtype), z), per_row(length[i].to(z.dtype), z)
        rest = 1 - share
        behind = rest**2 * ((1 + 2 * share) * z[rows] + share * unit * slope[rows])
        ahead = share**2 * ((1 + 2 * rest) * node.z[i] - rest * unit * node.slope[i])
        states = states.index_put((k, rows), behind + ahead)
        s = s.index_put((node.rows,), node.s)
        z, slope = z.index_put((node.rows,), node.z), slope.index_put((node.rows,), node.slope)
    return states


def check_shape(times: Tensor, n_rows: int) -> None:
    """Refuse times that are neither for all rows nor for each its own.

    Raises
    ------
    ValueError
    """
    if times.ndim not in (1, 2) or (times.ndim == 2 and len(times) != n_rows):
        raise ValueError(
            f"times must have shape (n_times,), the same for all rows, or ({n_rows}, n_times), of their own for each "
            f"of the {n_rows} rows, got {tuple(times.shape)}."
        )


def check_within(times: Tensor, start: float, end: float, slack: float = 0.0) -> None:
    """Refuse times outside of a span, and nan.

    Raises
    ------
    ValueError
    """
    low, high = min(start, end), max(start, end)
    outside = times[~((times >= low - slack) & (times <= high + slack))]
    if len(outside):
        raise ValueError(f"times must lie within the span from {start!r} to {end!r}, got {outside[0].item()!r}.")


class MeshInterpolation:
    r"""Interpolate the states of a solve on a mesh, by Hermite's formula through three nodes.

    .. math::

        z(t) = \sum_i \big(1 - 2 (t - s_i) L_i'(s_i)\big) L_i(t)^2 z_i + (t - s_i) L_i(t)^2 f(s_i, z_i)

    A state within a step is interpolated from the step's ends and the node before them, or else after them. Its error
    is :math:`O(\epsilon^6)`: below that of every method up to order 5. Where there is no such node, or it lies less
    than half a step away, the two ends have to do, and the error is :math:`O(\epsilon^4)`: so it is on a mesh of one
    step. The result passes through the nodes, whose states are returned as they are. A state does not depend on the
    other times that are asked for.

    Parameters
    ----------
    grid : sequence of float
        The mesh.
    times : Tensor or sequence of float, of shape (n_times,) or (batch, n_times)
        Within the mesh, without nan; for all rows, or for each its own.

    Raises
    ------
    ValueError
        If a time lies outside of the mesh.

    Attributes
    ----------
    n_steps : int
        Steps that the solve has to take. The later ones are not needed.
    nodes : tuple of int
        Nodes at which f is needed.

    Examples
    --------
    >>> from sklearn_hyper.numerics.dense_output import MeshInterpolation
    >>> dense = MeshInterpolation((0.0, 0.5, 1.0, 1.5, 2.0), [0.5, 1.2])
    >>> dense.n_steps, dense.nodes  # 1.2 lies in the third step; 0.5 is a node
    (3, (1, 2, 3))
    """

    def __init__(self, grid: Sequence[float] | Tensor, times: Any):
        mesh = torch.tensor([float(node) for node in grid], dtype=torch.float64)
        at = torch.as_tensor(times, dtype=torch.float64).cpu()
        self.by_row = at.ndim == 2
        at = at.T if self.by_row else at[:, None]  # time first, as states are
        sign = 1.0 if mesh[-1] > mesh[0] else -1.0
        largest = max(mesh[[0, -1]].abs().max(), (mesh[-1] - mesh[0]).abs())
        slack = _ULPS * torch.finfo(torch.float64).eps * largest
        check_within(at, mesh[0].item(), mesh[-1].item(), float(slack))
        self._nodes = torch.searchsorted(sign * mesh, (sign * at + slack).contiguous(), right=True) - 1
        self._nodes = self._nodes.clamp(0, len(mesh) - 1)
        self._is_node = (at - mesh[self._nodes]).abs() <= slack
        step = self._nodes[~self._is_node]
        # At nodes nothing is interpolated, so they may name any step that is taken anyway.
        step = torch.where(self._is_node, step[0] if len(step) else 0, self._nodes)
        third = _third_nodes(mesh)[step]
        self._stencil = [step, step + 1, torch.where(third < 0, step, third)]
        self._weights = _hermite_weights(mesh, step, third, at)
        needed = [nodes[~self._is_node] for nodes in self._stencil]
        unique = torch.cat(needed).unique()
        self.nodes: tuple[int, ...] = tuple(unique.tolist())
        self._places = [torch.searchsorted(unique, nodes.contiguous()) for nodes in self._stencil]
        self.n_steps = max([*self._nodes[self._is_node].tolist(), *self.nodes[-1:]], default=0)

    def states(self, states: Sequence[Tensor], slopes: Mapping[int, Tensor]) -> Tensor:
        """Return the states at the times, time first, of shape (n_times, batch, ...).

        Parameters
        ----------
        states : sequence of Tensor
            z_0, ..., z_n of ``n_steps`` steps or more.
        slopes : mapping of int to Tensor
            f at ``nodes``.
        """
        z = torch.stack(list(states))
        found = self._take(z, self._nodes)
        if not self.nodes:
            return found
        f = torch.stack([slopes[node] for node in self.nodes])
        total: Any = 0.0
        for nodes, places, weights in zip(self._stencil, self._places, self._weights, strict=True):
            for weight, tensor, index in zip(weights, (z, f), (nodes, places), strict=True):
                total = total + self._spread(weight.to(z.dtype), z) * self._take(tensor, index)
        return torch.where(self._spread(self._is_node, z), found, total)

    def _take(self, tensor: Tensor, nodes: Tensor) -> Tensor:
        """Return entries of a stack of nodes, by time, or by time and row."""
        nodes = nodes.to(tensor.device)
        if not self.by_row:
            return tensor[nodes[:, 0]]
        return tensor[nodes, torch.arange(tensor.shape[1], device=tensor.device)]

    @staticmethod
    def _spread(values: Tensor, z: Tensor) -> Tensor:
        """Return numbers by time, or by time and row, so that they broadcast to a stack of states like z."""
        return values.to(z.device).reshape(*values.shape, *[1] * (z.ndim - 2))


def _third_nodes(mesh: Tensor) -> Tensor:
    """Return for each step the node beside its ends that a state within is interpolated from; -1 for none.

    The node before is there already. That after takes a step more, which a solve to the end takes anyway.
    """
    lengths = mesh.diff().abs()
    step, never = torch.arange(len(lengths)), torch.zeros(1, dtype=torch.bool)
    before = torch.cat([never, lengths[:-1] >= _LEAST_SHARE * lengths[1:]])
    after = torch.cat([lengths[1:] >= _LEAST_SHARE * lengths[:-1], never])
    return torch.where(before, step - 1, torch.where(after, step + 2, -1))


def _hermite_weights(mesh: Tensor, step: Tensor, third: Tensor, times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the weights of states and of f at both ends of a step and at a third node, which may be missing (-1)."""
    start, end, has_third = mesh[step], mesh[step + 1], third >= 0
    away = torch.where(has_third, mesh[third], 2 * start - end)
    always = torch.ones_like(has_third)
    nodes = [(start, always), (end, always), (away, has_third)]
    weights = []
    for i, (own, is_there) in enumerate(nodes):
        lagrange, slope = is_there.double(), torch.zeros_like(times)
        for other, counts in nodes[:i] + nodes[i + 1 :]:
            lagrange = torch.where(counts, lagrange * (times - other) / (own - other), lagrange)
            slope = torch.where(counts, slope + 1 / (own - other), slope)
        weights.append(((1 - 2 * (times - own) * slope) * lagrange**2, (times - own) * lagrange**2))
    return weights


class Piece(NamedTuple):
    """The solution of all rows within a step, as a polynomial of the share of the step that has passed."""

    start: Tensor
    size: Tensor
    """Signed. Like ``start``, a 0-d tensor in float64. Steps that dopri5 chooses depend on the field's parameters."""
    coefficients: tuple[Tensor, ...]
    """Of the share's powers, from the zeroth on; each has the shape of the states."""


def quartic_piece(
    start: Tensor, size: Tensor, ends: tuple[Tensor, Tensor], middle: Tensor, slopes: tuple[Tensor, Tensor]
) -> Piece:
    """Return dopri5's dense output: the quartic through both ends and the middle of a step, with these slopes."""
    before, after = ends
    first, last = size * slopes[0], size * slopes[1]
    return Piece(
        start,
        size,
        (
            before,
            first,
            last - 4 * first - 11 * before - 5 * after + 16 * middle,
            5 * first - 3 * last + 18 * before + 14 * after - 32 * middle,
            2 * (last - first) - 8 * (before + after) + 16 * middle,
        ),
    )


def states_at(pieces: Sequence[Piece], z0: Tensor, times: Tensor) -> Tensor:
    """Return the states at times of their own for each row, differentiable.

    Parameters
    ----------
    pieces : sequence of Piece
        The steps of a solve, in their order. None for a solve that only asks for its start.
    z0 : Tensor of shape (batch, ...)
        States where the solve starts.
    times : Tensor of shape (batch, n_times)
        In float64, within the solve; nan where a row has no further time.

    Returns
    -------
    Tensor of shape (batch, n_times, ...)
        Zero where the time is nan.
    """
    given = ~times.isnan()
    rows, columns = given.nonzero(as_tuple=True)
    if pieces:
        asked = times[given]
        starts = torch.stack([piece.start for piece in pieces])
        sizes = torch.stack([piece.size for piece in pieces])
        sign = sizes[0].detach().sign()
        which = torch.searchsorted(sign * starts.detach(), sign * asked, right=True).sub(1).clamp(min=0)
        share = per_row(((asked - starts[which]) / sizes[which]).to(z0.dtype), z0)
        coefficients = torch.stack([torch.stack(piece.coefficients) for piece in pieces])[which, :, rows]
        values = coefficients[:, -1]
        for power in range(coefficients.shape[1] - 2, -1, -1):
            values = values * share + coefficients[:, power]
    else:
        values = z0[rows]
    return z0.new_zeros((*times.shape, *z0.shape[1:])).index_put((rows, columns), values)
