"""Changed weights on convolutional Neural ODEs at full resolution: the paper's fields, trained on 6,000 images.

    python examples/benchmarks/full_images.py --data FOLDER [--device cuda] [--only mnist]

The fields are those of section 4.1 of the paper: 36 million multiply-accumulates on MNIST, 42 on CIFAR-10. Each fit sees
600 training images without their labels, with the default settings but for what a cell's name says:

default      "auto": weights, with a thin correction of long reach beside them.
weights      Weights alone.
rank 4       Weights alone, changes of rank 4.
net          A net beside f, on learned coefficients: what "auto" was before.

Errors are relative, of 1,000 test images against dopri5 at 1e-5. Labels count as changed, and accuracy as lost, against
the same. Speed-ups are over dopri5 at 1e-4, of batches of 256, interleaved.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from _results import Results, parser
from _solving import count_calls, dopri5_solver, evaluated_fields
from images import Images, load_images, trained_model
from torch import Tensor

from sklearn_hyper import ConvCorrection, HypersolverRegressor, NeuralODE, WeightCorrection
from sklearn_hyper.metrics import relative_l2
from sklearn_hyper.numerics import count_macs, time_interleaved

N_FIT, N_TEST, BATCH = 600, 1000, 250
STEPS = {"mnist": (1, 2, 3), "cifar": (2, 4, 8)}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "weights": {"correction": WeightCorrection()},
    "rank 4": {"correction": WeightCorrection(rank=4)},
    "net": {"correction": ConvCorrection(), "base_solver": "nonstationary"},
}


class Bench:
    """A trained field, its test images, and dopri5's answers on them."""

    def __init__(self, name: str, arguments: Any):
        self.images: Images = load_images(name, arguments.data)
        self.model = trained_model(
            name, self.images, arguments.cache, architecture="full", device=arguments.device
        )  # fmt: skip
        self.device = arguments.device
        self.ode: NeuralODE = copy.deepcopy(self.model.neural_ode_).to(self.device)
        self.x = torch.from_numpy(self.images.X_test[:N_TEST]).to(self.device)
        self.y = self.images.y_test[:N_TEST]
        exact = dopri5_solver(self.ode, 1e-5)
        with torch.no_grad():
            self.states = torch.cat([exact(x) for x in self.x.split(BATCH)])
        self.labels = self._labels(self.states)

    def _labels(self, z: Tensor) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([self.ode.output_map(rows).argmax(1) for rows in z.split(BATCH)]).cpu().numpy()

    def dopri5(self) -> dict[str, Any]:
        """What the adaptive solver needs, and how good the classifier is."""
        solve = dopri5_solver(self.ode, 1e-4)
        with torch.no_grad():
            nfe = count_calls(self.ode.vector_field, lambda: solve(self.x[:BATCH]))
        return {
            "nfe": nfe, "accuracy": np.mean(self.labels == self.y),
            "mmac_f": self.ode.count_field_macs(self.x[:1]) / 1e6,
        }  # fmt: skip

    def fit(self, kind: str, n_steps: int) -> dict[str, Any]:
        """A fit, its errors beside its base solver's, and its speed."""
        settings = {"n_steps": n_steps, "device": self.device, "random_state": 0, "rtol": 1e-4} | KINDS[kind]
        if n_steps == 1 and "base_solver" in settings:
            settings["base_solver"] = "euler"
        fast = HypersolverRegressor(self.model, **settings).fit(self.images.X_train[:N_FIT])
        seconds = sum(row["dur"] for row in fast.history_)
        return {
            **self._errors(fast), "base_error": self._errors(fast.without_correction())["error"],
            "training_seconds": seconds, "correction": type(fast.correction_).__name__,
        }  # fmt: skip

    def _errors(self, fast: HypersolverRegressor) -> dict[str, Any]:
        solver, slow = fast.module_, dopri5_solver(self.ode, 1e-4)
        one, batch = self.x[:1], self.x[:256]
        with torch.no_grad():
            z = torch.cat([solver.terminal_state(x) for x in self.x.split(BATCH)])
            nfe = count_calls(evaluated_fields(solver), lambda: solver.terminal_state(one))
            calls = {"ours": lambda: solver.terminal_state(batch), "dopri5": lambda: slow(batch)}
            ms = time_interleaved(calls, repeats=5)
        errors, labels = relative_l2(self.states.cpu().numpy(), z.cpu().numpy()), self._labels(z)
        macs = count_macs(solver.terminal_state, one) - np.nan_to_num(count_macs(self.ode.input_map, one))
        return {
            "error": np.median(errors), "p99": np.quantile(errors, 0.99), "max": errors.max(),
            "labels_changed": np.mean(labels != self.labels),
            "points_lost": 100 * (np.mean(self.labels == self.y) - np.mean(labels == self.y)),
            "nfe": nfe, "cost": macs / self.ode.count_field_macs(one), "ms": ms["ours"],
            "speed_up": ms["dopri5"] / ms["ours"],
        }  # fmt: skip


def main() -> None:
    options = parser(__doc__, "full_images.json")
    options.add_argument(
        "--data", help="folder of mnist.npz and cifar10_subset.npz; default SKLEARN_HYPER_DATA, OpenML"
    )
    options.add_argument("--device", default="cpu")
    options.add_argument("--only", choices=list(STEPS), help="one of the two")
    arguments = options.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # errors of 1e-3 are to be seen
    command = f"python examples/benchmarks/full_images.py --data FOLDER --device {arguments.device}"
    results = Results(arguments.out, command, fresh=arguments.fresh)
    for name in [arguments.only] if arguments.only else STEPS:
        bench = Bench(name, arguments)
        results.cell(f"{name}, dopri5 1e-4", bench.dopri5)
        for n_steps in STEPS[name]:
            for kind in KINDS:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    results.cell(f"{name}, K={n_steps}, {kind}", partial(bench.fit, kind, n_steps))
    results.write(results.cells)


if __name__ == "__main__":
    main()
