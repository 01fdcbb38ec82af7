"""A class-conditional U-Net of diffusers, trained by flow matching: its samples in two to eight evaluations.

    pip install -c constraints.txt -e ".[interop]"
    python examples/benchmarks/conditional_images.py [--seeds SEED ...]
    python examples/benchmarks/conditional_images.py --size 28 --data FOLDER --seeds 0 --out FILE

The field is a `UNet2DModel` with 160,000 weights, trained here on scikit-learn's digits of 8 x 8 pixels, or on MNIST of
28 x 28. It gets 1000 t as its timestep, noise being at t = 1, and a label for each row. A fit sees noise and labels.
Noise is free and a fit with so many weights soon knows its rows, so it takes 4,000 of them in 10 passes instead of 2,000
in 120. References are solved at 1e-4. All else is as by default. The errors are of fresh noise and labels:

- the 2-norm of the end's error against dopri5 at 1e-6, relative to that end: mean and median over rows;
- the Frechet distance to held-out images, of 20 principal components of the training images. "frechet_ratio" is ours
  over that of dopri5, from the same noise.

Rivals take as many evaluations. "bns" has the learned coefficients and times that the fit starts from, after 10 passes
over 512 rows, and the field's own weights. CPU seconds and milliseconds are of one thread; those of a batch of 256 are
interleaved. Cells are kept as they come, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import time
import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from _results import Results, fitted, parser, spread
from _solving import plain_solver
from images import Images, load_digit_images, load_images
from sklearn.decomposition import PCA
from torch import Tensor

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.adapters import from_velocity
from sklearn_hyper.metrics import CountedField, relative_l2
from sklearn_hyper.numerics import time_interleaved

SEEDS, EVALUATIONS = (0, 1), (2, 4)
CLASSICAL = {"euler": 1, "ab2": 1, "midpoint": 2, "heun": 2, "rk4": 4}
N_COMPONENTS, BATCH, LR, N_TIMED = 20, 128, 2e-3, 256
CHANNELS = {8: (16, 32), 28: (16, 32, 64)}


class Sizes(NamedTuple):
    """How much is trained, fitted and tested."""

    iterations: int
    n_fit: int
    n_test: int
    max_epochs: int


FULL, SMOKE = Sizes(2000, 4000, 1000, 10), Sizes(10, 40, 30, 2)


def load(size: int, seed: int, folder: str | None) -> Images:
    """Images with pixels from -1 to 1."""
    images = load_digit_images(seed) if size == 8 else load_images("mnist", folder)
    scale = 8 if size == 8 else 0.5
    return images._replace(X_train=images.X_train / scale - 1, X_test=images.X_test / scale - 1)


def train(images: Images, size: int, seed: int, iterations: int) -> Any:
    """Flow matching: regress noise minus image on the straight line between them."""
    from diffusers import UNet2DModel  # the tests of the tables do without it

    torch.manual_seed(seed)
    channels = CHANNELS[size]
    unet = UNet2DModel(
        sample_size=size, in_channels=1, out_channels=1, block_out_channels=channels, layers_per_block=1,
        norm_num_groups=4, add_attention=False, num_class_embeds=10,
        down_block_types=("DownBlock2D",) * len(channels), up_block_types=("UpBlock2D",) * len(channels),
    )  # fmt: skip
    data, labels = torch.from_numpy(images.X_train).float(), torch.from_numpy(images.y_train).long()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(unet.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        rows, t = torch.randint(len(data), (BATCH,), generator=draw), torch.rand(BATCH, generator=draw)
        noise = torch.randn(BATCH, 1, size, size, generator=draw)
        velocity = noise - data[rows]
        found = unet(data[rows] + t[:, None, None, None] * velocity, 1000 * t, class_labels=labels[rows]).sample
        loss = (found - velocity).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return unet.eval()


def draws(n: int, size: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise and labels."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 1, size, size, generator=draw)
    return noise, {"class_labels": torch.randint(10, (n,), generator=draw)}


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Between normal distributions with the means and covariances of two samples of features."""
    covariance, theirs = np.cov(one.T), np.cov(other.T)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ theirs @ root).clip(0)).sum()
    return float(((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariance) + np.trace(theirs) - 2 * cross)


class Bench:
    """A trained field, fresh noise, and where dopri5 takes it."""

    def __init__(self, seed: int, arguments: Any):
        self.sizes: Sizes = SMOKE if arguments.smoke else FULL
        self.seed, self.size = seed, arguments.size
        images = load(self.size, seed, arguments.data)
        name = f"unet_{self.size}_{self.sizes.iterations}_seed{seed}"
        unet = fitted(arguments.cache, name, lambda: train(images, self.size, seed, self.sizes.iterations))
        self.ode: NeuralODE = from_velocity(
            unet, order="xt", t_span=(1.0, 0.0), time_scale=1000.0, condition="class_labels"
        )
        self.n_weights = sum(weight.numel() for weight in unet.parameters())
        self.noise, self.condition = draws(self.sizes.n_test, self.size, 1000 + seed)
        with torch.no_grad():
            self.exact = self.ode(self.noise, rtol=1e-6, condition=self.condition).numpy()
        flat = images.X_train.reshape(len(images.X_train), -1)
        self.pca = PCA(N_COMPONENTS, random_state=0).fit(flat[:5000])
        self.real = self._features(images.X_test[:2000])
        self.frechet = frechet_distance(self._features(self.exact), self.real)

    def _features(self, images: np.ndarray) -> np.ndarray:
        return self.pca.transform(images.reshape(len(images), -1))

    def judge(self, ends: Tensor) -> dict[str, float]:
        """Errors and the distance of ends, whatever made them."""
        errors = relative_l2(self.exact, ends.numpy())
        distance = frechet_distance(self._features(ends.numpy()), self.real)
        return {
            "mean": errors.mean(), "median": np.median(errors), "p99": np.quantile(errors, 0.99),
            "frechet": distance, "frechet_ratio": distance / self.frechet,
        }  # fmt: skip

    def dopri5(self) -> dict[str, Any]:
        """What the adaptive solver needs at 1e-4, as torchdiffeq has it, and how far its samples are from images."""
        counted = CountedField(self.ode.vector_field)
        with torch.no_grad():
            ends = self.ode.solve(self.noise, rtol=1e-4, atol=1e-4, condition=self.condition, field=counted)
        return {"evaluations": counted.n_evaluations, "n_weights": self.n_weights, **self.judge(ends)}

    def at(self, evaluations: int) -> dict[str, Any]:
        """A default fit, its rivals of as many evaluations, and milliseconds."""
        noise, condition = draws(self.sizes.n_fit, self.size, 2000 + self.seed)
        fast = HypersolverRegressor(
            self.ode, n_steps=evaluations, rtol=1e-4, max_samples=self.sizes.n_fit, max_epochs=self.sizes.max_epochs,
            random_state=self.seed,
        )  # fmt: skip
        start = time.process_time()
        fast.fit(noise, condition=condition)
        seconds = time.process_time() - start
        solvers = {"ours": fast.to_module().fold(), "bns": fast.without_correction().to_module()}
        for name, stages in CLASSICAL.items():
            if evaluations % stages == 0:
                solvers[name] = plain_solver(self.ode, name, evaluations // stages)
        found: dict[str, Any] = {"fit_cpu_s": seconds, "correction": type(fast.correction_).__name__}
        with torch.no_grad():
            for name, solver in solvers.items():
                found[name] = self.judge(solver(self.noise, self.condition))
            rows = self.noise[:N_TIMED]
            given = {name: values[:N_TIMED] for name, values in self.condition.items()}
            calls: dict[str, Any] = {name: partial(solvers[name], rows, given) for name in ("ours", "midpoint")}
            calls["dopri5"] = lambda: self.ode(rows, rtol=1e-4, atol=1e-4, condition=given)
            found["ms"] = time_interleaved(calls, repeats=3, warmup=1)
        return found


def summarise(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over seeds, by problem, evaluations and solver."""
    found: dict[str, dict[str, Any]] = {}
    for name, cell in cells.items():
        problem, what, _ = name.split(": ")
        entry = found.setdefault(problem, {}).setdefault(what, {})
        for key, value in _flat(cell).items():
            if key != "seconds" and isinstance(value, (int, float)):
                entry.setdefault(key, []).append(value)
    return {
        problem: {what: {key: spread(values) for key, values in entry.items()} for what, entry in entries.items()}
        for problem, entries in found.items()
    }


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{key} {inner}" if inner else key: one
        for key, value in cell.items()
        for inner, one in (value.items() if isinstance(value, dict) else [("", value)])
    }


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown: medians over seeds, and ranges where there are several."""
    lines: list[str] = []
    heads = ("evaluations", "solver", "mean error", "median error", "Frechet distance over dopri5's", "fit, CPU s")
    for problem, entries in summary.items():
        lines += [f"## {problem}", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        for what, entry in entries.items():
            solvers = [key.removesuffix(" median") for key in entry if key.endswith(" median")] or [""]
            for solver in solvers:
                of = f"{solver} " if solver else ""
                shown = [_shown(entry[of + key]) for key in ("mean", "median", "frechet_ratio")]
                seconds = f"{entry['fit_cpu_s']['median']:.0f}" if solver == "ours" else "-"
                count = what if solver else f"{entry['evaluations']['median']:.0f}"
                lines.append("| " + " | ".join([count, solver or what, *shown, seconds]) + " |")
        lines.append("")
    return "\n".join(lines)


def _shown(values: dict[str, float]) -> str:
    low, middle, high = (f"{values[key]:#.3g}" for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def write(results: Results) -> None:
    """The summary and its table."""
    results.write(summarise(results.cells))
    results.path.with_suffix(".md").write_text(tables(results.summary))


def main() -> None:
    options = parser(__doc__, "conditional_images.json")
    options.add_argument("--size", type=int, default=8, choices=list(CHANNELS), help="pixels a side")
    options.add_argument("--data", help="folder of mnist.npz, for --size 28; default SKLEARN_HYPER_DATA, OpenML")
    options.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    options.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS), metavar="K")
    options.add_argument("--smoke", action="store_true", help="a little of everything: does the script run?")
    options.add_argument("--summary", action="store_true", help="make summary and table from the cells")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    command = "python examples/benchmarks/conditional_images.py" + (" --size 28 --data FOLDER" * (arguments.size == 28))
    results = Results(arguments.out, command, fresh=arguments.fresh, measuring=not arguments.summary)
    for seed in () if arguments.summary else arguments.seeds:
        bench = Bench(seed, arguments)
        problem = f"{arguments.size} x {arguments.size}"
        results.cell(f"{problem}: dopri5 1e-4: {seed}", bench.dopri5)
        for evaluations in arguments.evaluations:
            results.cell(f"{problem}: {evaluations}: {seed}", partial(bench.at, evaluations))
        write(results)
    write(results)


if __name__ == "__main__":
    main()
