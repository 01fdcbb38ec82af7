"""Ctrl-C, pressed by callbacks and in the place of calls."""

import copy

import torch
from skorch.callbacks import Callback


def interrupted(*args, **kwargs):
    """In place of a function: Ctrl-C as soon as it is called."""
    raise KeyboardInterrupt


class StopsAt(Callback):
    """Presses Ctrl-C at the end of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


class Stops(Callback):
    """Presses Ctrl-C in an epoch, at its end or after some batches of it, and remembers the weights of every finished one."""

    def __init__(self, epoch, after_batches=None, spoil=None):
        self.epoch, self.after_batches, self.spoil = epoch, after_batches, spoil

    def on_train_begin(self, net, **kwargs):
        self.weights, self.n_batches, self.begun = [], 0, len(net.history)

    def on_epoch_begin(self, net, **kwargs):
        self.n_batches = 0
        if len(net.history) - self.begun == self.spoil:
            with torch.no_grad():
                for parameter in net.module_.parameters():
                    parameter.mul_(-3)

    def on_batch_end(self, net, training, **kwargs):
        self.n_batches += training
        if training and (len(net.history) - self.begun, self.n_batches) == (self.epoch, self.after_batches):
            raise KeyboardInterrupt

    def on_epoch_end(self, net, **kwargs):
        self.weights.append(copy.deepcopy(net.module_.state_dict()))
        if self.after_batches is None and len(net.history) - self.begun == self.epoch:
            raise KeyboardInterrupt


class StopsInTraining(Callback):
    """Presses Ctrl-C in the n-th training: at the first batch of an epoch, or at its end."""

    def __init__(self, training, epoch=1, at_end=False):
        self.training, self.epoch, self.at_end, self.begun = training, epoch, at_end, 0

    def on_train_begin(self, net, **kwargs):
        self.begun += 1

    def on_batch_end(self, net, **kwargs):
        if not self.at_end:
            self._press(net)

    def on_epoch_end(self, net, **kwargs):
        if self.at_end:
            self._press(net)

    def _press(self, net):
        if (self.begun, len(net.history)) == (self.training, self.epoch):
            raise KeyboardInterrupt
