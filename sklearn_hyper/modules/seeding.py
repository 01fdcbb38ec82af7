"""Seeding of torch's global generators, for one thread at a time.

The library's own draws use a separate ``torch.Generator``. Some code has no such option: layer initialisation, dropout
and a distribution's ``sample`` draw from the global generator. Such code runs inside :func:`seeded`.
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
    """Replace the lock in a forked child, where no thread is left to release it."""
    global _lock
    _lock = threading.RLock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the context, and restore them after it. Other threads wait.

    Fits enter it while nets are built, and during training that may run user code (Neural ODEs, flows, the user's own
    correction modules). The library's corrections draw nothing in training, so their training stays parallel.
    A thread may enter it again, but code inside must not wait for a fit in another thread. CUDA's generator is seeded
    only for a CUDA device.
    """
    cuda_devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with _lock, torch.random.fork_rng(devices=cuda_devices):
        # Not torch.manual_seed, which would also seed the devices that are not restored afterwards.
        torch.default_generator.manual_seed(seed)
        for cuda_device in cuda_devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield


def own_generator(seed: int) -> torch.Generator:
    """Return a new seeded generator on the CPU. Draws from it are moved to the device, so they are the same on all."""
    return torch.Generator().manual_seed(seed)
