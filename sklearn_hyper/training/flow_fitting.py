"""Train a continuous normalizing flow by flow matching, or by maximum likelihood through the solver."""

from __future__ import annotations

import copy
import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn

from ..modules.flow import Flow
from ..modules.neural_ode import VectorFieldError
from ..modules.seeding import own_generator
from ..numerics.times import time_dtype
from .batches import Batches
from .given_rows import Inputs, apart, given
from .joint import make_joint_loss
from .nets import BestWeights, LossNet, TensorRows, build_net, cosine_schedule
from .neural_ode_fitting import TrainingSettings, schedule_and_control
from .references import solve_ends
from .solver_control import TrainingSolver, is_dopri5
from .tasks import Task

_VALID_DRAWS = 2048
_SHARED_TIMES = 16
"""Number of times in a batch, for a field that cannot take one for each row."""
_VALID_CHUNK = 8
"""Validation keeps no graph, so it takes this many times ``batch_size`` rows at a time."""
_MANY_EVALUATIONS, _GROWTH = 150, 3
_MAX_EVALUATIONS = 3000  # in a solve: its graph is kept in memory, and no useful flow needs as many


class StiffFlowWarning(UserWarning):
    """Training has made the field far more expensive to solve."""


@dataclass(frozen=True)
class FlowSettings(TrainingSettings):
    """Settings of the training of a flow; ``ContinuousNormalizingFlow`` documents them under the same names.

    ``noise`` is the distribution of Hutchinson's noise, or None for the exact trace.
    """

    objective: str
    noise: str | None
    kinetic: float
    jacobian: float
    row_times: bool = True
    """Whether ``torch.func.vmap`` can call the field, so that every row may have its own time."""


def draw_noise(kind: str, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw noise of zero mean and unit covariance for Hutchinson's estimator; None uses torch's global generator."""
    if kind == "rademacher":
        return torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1
    return torch.randn(like.shape, generator=generator).to(like)


def row_noise(kind: str, rows: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Return such noise for rows of data, from a hash of each row and the seed.

    So a row has the same noise in any batch, at any position and in either precision. Rows that are equal, to the 24
    bits of float32's mantissa, have the same noise.

    Parameters
    ----------
    kind : {"rademacher", "gaussian"}
    rows : array of float of shape (n, d)
    seed : int

    Returns
    -------
    array of shape (n, d)

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(5, 20))
    >>> noise = row_noise("rademacher", rows, seed=0)
    >>> bool((row_noise("rademacher", rows[3:], seed=0) == noise[3:]).all())
    True
    """
    d = rows.shape[1]
    n_bytes = -(-d // 8) if kind == "rademacher" else 8 * d
    keys, salt = _as_keys(rows), f"{seed}:".encode()
    drawn = b"".join(hashlib.shake_128(salt + key.tobytes()).digest(n_bytes) for key in keys)
    if kind == "rademacher":
        bits = np.frombuffer(drawn, dtype=np.uint8).reshape(len(rows), n_bytes)
        return 2.0 * np.unpackbits(bits, axis=1, count=d).astype(np.float64) - 1.0
    uniform = (np.frombuffer(drawn, dtype="<u8").reshape(len(rows), d) >> 11) + 0.5
    return np.asarray(ndtri(uniform / 2.0**53))


def _as_keys(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows whose bytes are those of equal rows: rounded to float32's mantissa at any size, without minus 0."""
    mantissa, exponent = np.frexp(rows.astype(np.float64))
    with np.errstate(over="ignore"):
        return np.ldexp(mantissa.astype(np.float32).astype(np.float64), exponent).astype("<f8") + 0.0


class FlowMatchingLoss(nn.Module):
    r"""Loss of conditional flow matching on straight paths, which solves nothing in training.

    .. math:: \ell = E \big\| (t_1 - t_0) f(t, z_t) - (z_1 - z_0) \big\|^2 / d, \qquad z_t = (1 - s) z_0 + s z_1

    with :math:`t = t_0 + s (t_1 - t_0)`, s uniform on (0, 1), z_0 from the base distribution and z_1 data.

    References
    ----------
    Lipman et al. (2023), *Flow Matching for Generative Modeling*, ICLR.
    """

    def __init__(self, flow: Flow, generator: torch.Generator | None = None, row_times: bool = True):
        super().__init__()
        self.flow, self.generator, self.row_times = flow, generator, row_times

    def draw(self, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draw shares s of the span and base states; s is stratified, one in each n-th of the span, for less noise.

        Without ``row_times``, rows share a few such times.
        """
        n_times = n if self.row_times else min(n, _SHARED_TIMES)
        order = torch.randperm(n_times, generator=self.generator)
        s = ((order + torch.rand(n_times, generator=self.generator)) / n_times).repeat(-(-n // n_times))[:n]
        return s.to(like), self.flow.sample_base(n, like.dtype, self.generator).to(like)

    def forward(self, rows: Inputs, drawn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        start, end = self.flow.t_span
        x, condition = apart(rows)
        z1 = x if self.flow.scaler is None else self.flow.scaler(x)
        s, z0 = self.draw(len(x), z1) if drawn is None else drawn
        z = torch.lerp(z0, z1, s[:, None])
        times = start + (end - start) * s.to(time_dtype(z.dtype, self.flow.t_span))
        if self.row_times:
            # A field takes one scalar t, but every row has its own time here: vmap batches the calls row by row.
            velocity = torch.func.vmap(self._velocity, randomness="different")(times, z, condition)
        else:
            velocity = torch.empty_like(z)
            for t in times.unique():
                same = (times == t).nonzero()[:, 0]
                own = {name: value[same] for name, value in condition.items()}
                velocity = velocity.index_copy(0, same, self.flow.vector_field(t, z[same], **own))
        # Multiply the velocity by the span, so that the loss has no units of time.
        return ((end - start) * velocity - (z1 - z0)).pow(2).mean()

    def _velocity(self, t: Tensor, z: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.flow.vector_field(t, z[None], **{name: value[None] for name, value in condition.items()})[0]


class LikelihoodLoss(nn.Module):
    """Negative mean log likelihood in nats, through the solver, plus RNODE's penalties where they have a weight."""

    def __init__(self, flow: Flow, settings: FlowSettings, generator: torch.Generator | None = None):
        super().__init__()
        self.flow, self.settings, self.generator = flow, settings, generator
        self.penalties = settings.kinetic > 0 or settings.jacobian > 0
        ode = flow.density(hutchinson=settings.noise is not None, penalties=self.penalties)
        # Not a module, so that the flow's parameters are not registered twice.
        self.solver = TrainingSolver(ode, settings, _MAX_EVALUATIONS)
        self.joint = make_joint_loss(self.solver, settings)
        self.n_evaluations = self.n_solves = 0

    def forward(self, x: Inputs, noise: Tensor | None = None) -> Any:
        x = self.solver_inputs(x, noise)
        states = self._solve(x)
        loss = self.row_losses(states).mean()
        return loss if self.joint is None or not self.training else self.joint.beside(loss, x, states)

    def solver_inputs(self, x: Inputs, noise: Tensor | None = None) -> Inputs:
        """Return what the solver takes for these rows: x, and the noise of Hutchinson's trace, drawn if not given."""
        if self.settings.noise is None:
            return x
        own, condition = apart(x)
        noise = draw_noise(self.settings.noise, own, self.generator) if noise is None else noise
        rows: Inputs = given(torch.cat([own, noise], dim=1), condition)
        return rows

    def row_losses(self, states: Tensor, y: Any = None) -> Tensor:
        """Return the loss of every row from its terminal state."""
        losses = -self.flow.log_prob(states)
        if not self.penalties:
            return losses
        # The solve runs backwards in time, which makes the integrals of squares negative.
        energy, jacobian = states[:, -2:].abs().unbind(dim=1)
        # Multiply by the span, so that integrals of squared velocities over time have no units of time.
        span = abs(self.flow.t_span[1] - self.flow.t_span[0])
        return losses + span * (self.settings.kinetic * energy + self.settings.jacobian * jacobian)

    def solve_ends(self, x: Inputs) -> None:
        """Solve from all rows as training does; the error names the rows that dopri5 cannot solve."""
        solve_ends(Task(self.solver.ode, *apart(self.solver_inputs(x))), self.settings.solving(x.device))

    def log_prob(self, x: Inputs) -> Tensor:
        """Return log densities by the training solver; for Hutchinson's trace x has the noise in further columns."""
        return self.flow.log_prob(self._solve(x))

    def _solve(self, x: Inputs) -> Tensor:
        states = self.solver(x, self.training)
        if self.training:
            self.n_evaluations += self.solver.last_evaluations
            self.n_solves += 1
        return states


class _EvaluationWatch(Callback):
    """Records dopri5's evaluations in a solve as ``nfe``, and warns once if they explode."""

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.first_, self.warned_ = 0.0, False
        self._reset(net)

    def _reset(self, net: NeuralNet) -> None:
        net.module_.n_evaluations = net.module_.n_solves = 0

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        nfe = net.module_.n_evaluations / net.module_.n_solves
        net.history.record("nfe", nfe)
        self.first_ = self.first_ or nfe
        if nfe > max(_MANY_EVALUATIONS, _GROWTH * self.first_) and not self.warned_:
            self.warned_ = True
            warnings.warn(
                f"epoch {len(net.history)}: a solve takes {nfe:.0f} evaluations of the field, {nfe / self.first_:.1f} "
                "times as many as in the first epoch: the field is growing stiff. Set kinetic and jacobian (0.01 each "
                "is a start), lower lr, use an optimizer with weight decay, or train with objective='flow_matching'.",
                StiffFlowWarning,
                stacklevel=2,
            )
        self._reset(net)


def build_flow_net(
    flow: Flow, settings: FlowSettings, valid: Inputs | None, n_rows: int, generator: torch.Generator
) -> LossNet:
    """Make a skorch net whose module computes the flow's loss.

    Parameters
    ----------
    valid : Tensor, GivenRows or None
        Held-out rows. Every epoch's loss on them is computed with the same draws.
    n_rows : int
        Number of rows trained on, which sets the length of the learning rate's schedule.
    generator : torch.Generator
        Generator of every draw.
    """
    likelihood = settings.objective == "likelihood"
    loss = (
        LikelihoodLoss(flow, settings, generator)
        if likelihood
        else FlowMatchingLoss(flow, generator, settings.row_times)
    )
    best = BestWeights(None if valid is None else _validation(flow, settings, valid, generator))
    n_batches = len(Batches(n_rows, settings.batch_size))
    if likelihood:
        schedule, first = schedule_and_control(settings, n_batches)
        if is_dopri5(settings.solver):
            first = [("evaluations", _EvaluationWatch()), *first]
    else:
        schedule, first = cosine_schedule(n_batches, [settings.max_epochs], [1.0]), []
    return build_net(
        LossNet, loss, settings, best, "training flow", schedule=schedule,
        first=first, batch_size=settings.batch_size, dataset=TensorRows,
    )  # fmt: skip


def _validation(flow: Flow, settings: FlowSettings, valid: Inputs, generator: torch.Generator) -> Any:
    """Return a function that computes a module's loss on held-out rows, with the same draws in every epoch."""
    drawn: Any
    if settings.objective == "likelihood":
        drawn = None if settings.noise is None else draw_noise(settings.noise, apart(valid)[0], generator)
    else:
        valid = valid[torch.arange(len(valid)).repeat(-(-_VALID_DRAWS // len(valid)))]
        drawn = FlowMatchingLoss(flow, generator, settings.row_times).draw(len(valid), apart(valid)[0])

    def validate(module: nn.Module) -> float:
        size, total = _VALID_CHUNK * settings.batch_size, 0.0
        for start in range(0, len(valid), size):  # bound memory by batch_size here too
            rows = slice(start, start + size)
            draws = (
                None if drawn is None else tuple(d[rows] for d in drawn) if isinstance(drawn, tuple) else drawn[rows]
            )
            with torch.no_grad():
                total += float(module(valid[rows], draws)) * len(valid[rows])
        return total / len(valid)

    return validate


def check_rows_apart(flow: Flow) -> None:
    """Refuse layers that mix the rows of a batch, since such a field has no divergence by row."""
    for name, module in flow.vector_field.named_modules() if isinstance(flow.vector_field, nn.Module) else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise VectorFieldError(
                f"vector_field holds {type(module).__name__} ({name}), which mixes the rows of a batch in training, "
                "and the divergence of a flow is that of one row: use LayerNorm or none."
            )


def check_matching(flow: Flow, x: Inputs) -> bool:
    """Compute the loss of flow matching once; return whether every row may have its own time.

    ``torch.func.vmap`` cannot call a field that differentiates inside, branches on values or keeps a buffer. Rows then
    share times.
    """
    with torch.no_grad():
        try:
            # On a copy, because vmap may leave a buffer in the field that is useless outside of it.
            by_row = FlowMatchingLoss(copy.deepcopy(flow), own_generator(0))
            for n_rows in (4, 3):  # a buffer fails where the number of rows changes
                by_row(x[torch.arange(n_rows) % len(x)])
        except Exception:  # try without vmap; errors of the field itself are raised there
            FlowMatchingLoss(flow, own_generator(0), False)(x)
            return False
    return True
