"""States between the steps of a solve, by interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .tensors import per_row


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
    times : Tensor of shape (n,)
        After the start, up to the end.
    """
    z, slope = torch.zeros_like(nodes[-1].z), torch.zeros_like(nodes[-1].z)
    s = torch.full_like(nodes[-1].s, torch.nan)  # before a row's first node, no time is within a step
    states = z.expand(len(times), *z.shape).clone()
    for node in nodes:
        length = node.s - s[node.rows]
        shares = (times - s[node.rows, None]) / length[:, None]
        i, k = ((shares > 0) & (shares <= 1)).nonzero(as_tuple=True)
        rows, share, unit = node.rows[i], per_row(shares[i, k].to(z.dtype), z), per_row(length[i].to(z.dtype), z)
        rest = 1 - share
        behind = rest**2 * ((1 + 2 * share) * z[rows] + share * unit * slope[rows])
        ahead = share**2 * ((1 + 2 * rest) * node.z[i] - rest * unit * node.slope[i])
        states = states.index_put((k, rows), behind + ahead)
        s = s.index_put((node.rows,), node.s)
        z, slope = z.index_put((node.rows,), node.z), slope.index_put((node.rows,), node.slope)
    return states


class Piece(NamedTuple):
    """The solution of all rows within a step, as a polynomial of the share of the step that has passed."""

    start: Tensor
    size: Tensor
    """Signed. Like ``start``, a 0-d tensor in float64. Steps that dopri5 chooses depend on the field's parameters."""
    coefficients: tuple[Tensor, ...]
    """Of the share's powers, from the zeroth on; each has the shape of the states."""


def hermite_piece(start: Tensor, size: Tensor, ends: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor]) -> Piece:
    """Return the cubic polynomial that has these states and slopes where a step begins and ends.

    Its error is of fourth order, as that of rk4's states.
    """
    (before, after), (first, last) = ends, (size * slope for slope in slopes)
    change = after - before
    return Piece(start, size, (before, first, 3 * change - 2 * first - last, first + last - 2 * change))


def quartic_piece(
    start: Tensor, size: Tensor, ends: tuple[Tensor, Tensor], middle: Tensor, slopes: tuple[Tensor, Tensor]
) -> Piece:
    """Return the quartic polynomial that also has this state in the middle of the step: dopri5's dense output."""
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
