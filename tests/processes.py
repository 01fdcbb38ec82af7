"""Processes that are forked, and have to end."""

import functools
import os
import signal
import time
import traceback
import warnings

import torch
import torch.distributed as dist


def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads, from Python 3.12 on
        return os.fork()


def wait(pid, seconds=120):
    """Return how a child has ended. One that hangs is killed, and fails the test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"a child did not end within {seconds} seconds")


def start(action, log):
    """Run an action in a process of its own, and return its id; what it raises is written to the log."""
    pid = fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(1)
    return pid


def in_child(action, log):
    """Run an action in a process of its own; return 0 if it ended well, 1 after an exception, minus a signal that killed it."""
    return wait(start(action, log))


class DiesOnce:
    """A field that kills the first process, other than this one, that evaluates it."""

    def __init__(self, flag):
        self.flag, self.here = flag, os.getpid()

    def __call__(self, t, z):
        if os.getpid() != self.here and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return -z * (1 + z.square())


def in_two_processes(compute, folder):
    """Return what compute() is in each of two processes that torch.distributed joins."""

    def run(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
        torch.save(compute(), folder / f"{rank}.pt")

    logs = [folder / f"{rank}.log" for rank in range(2)]
    children = [start(functools.partial(run, rank), log) for rank, log in enumerate(logs)]
    assert [wait(pid) for pid in children] == [0, 0], [log.read_text() for log in logs if log.exists()]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
