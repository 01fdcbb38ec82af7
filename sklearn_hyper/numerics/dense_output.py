"""States between the steps of a solve, by cubic Hermite interpolation."""

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
