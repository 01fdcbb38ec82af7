"""Torch's global generators, lent to one thread at a time.

What is ours to draw takes a ``torch.Generator`` of its own. Some code cannot: layers initialise themselves by the
global generator, dropout and a distribution's ``sample`` draw from it. Such code runs inside :func:`seeded`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked child nobody is left to release what another thread held."""
    global _lock
    _lock = threading.RLock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch inside, leave its global generators as found; other threads wait at the door.

    Fits hold it while nets are built, and all through the training of modules that may be the user's: those of Neural
    ODEs and flows, and corrections of the user's own. Our corrections draw nothing in training, which therefore stays
    parallel. One thread may enter it again; what runs inside must not wait for a fit in another thread. CUDA's
    generator is touched for a CUDA device alone.
    """
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with _lock, torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed, which would seed every device, those that are not forked here too.
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


def own_generator(seed: int) -> torch.Generator:
    """A generator of one's own, on the CPU: draws are moved, and so the same on every device."""
    return torch.Generator().manual_seed(seed)
