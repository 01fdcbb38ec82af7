"""Flow maps: nets that skip f altogether, straight from the input to the terminal state."""

from __future__ import annotations

from torch import Tensor, nn

from .loading import LoadedProblem
from .nets import G_SHARE, conv, mlp, widest
from .training import Trace, train


class FlowMapNet(nn.Module):
    """z_0 + net(x), scaled by the rows it is fitted on.

    Parameters
    ----------
    loaded : LoadedProblem
    size_of : "g" or "f"
        Whose multiply-accumulates it may have.
    """

    def __init__(self, loaded: LoadedProblem, size_of: str):
        super().__init__()
        self.neural_ode = loaded.neural_ode
        z0, exact = loaded.initial_states, loaded.fitted_ends
        x = loaded.rows["fit"] if loaded.neural_ode.data_controlled else z0
        axes = [0, *range(2, x.ndim)]
        self.register_buffer("shift", x.mean(dim=axes, keepdim=True))
        self.register_buffer("scale", x.std(dim=axes, keepdim=True).clamp(min=1e-6))
        self.register_buffer("out", (exact - z0).pow(2).mean(dim=axes, keepdim=True).sqrt())
        self.net = _build_net(x.shape[1], z0[0], loaded.macs_f, size_of)

    def forward(self, x: Tensor) -> Tensor:
        z0 = self.neural_ode.input_map(x)
        given = x if self.neural_ode.data_controlled else z0
        return z0 + self.out * self.net((given - self.shift) / self.scale)


def _build_net(n_in: int, state: Tensor, macs_f: float, size_of: str) -> nn.Sequential:
    """As wide as the multiply-accumulates allow, from n_in features or channels to a state."""
    small = size_of == "g"
    limit, n_out = (G_SHARE if small else 1.0) * macs_f, state.shape[0]
    if state.ndim == 1:
        hidden = widest(lambda h: n_in * h + h * h + h * n_out, limit, 32 if small else 128)
        return mlp(n_in, [hidden, hidden], n_out, nn.SiLU)
    area = 9 * state[0].numel()
    if small:
        return conv(n_in, [widest(lambda h: area * (n_in + n_out) * h, limit, 16)], n_out, nn.SiLU)
    hidden = widest(lambda h: area * ((n_in + n_out) * h + h * h), limit, 32)
    return conv(n_in, [hidden, hidden], n_out, nn.SiLU)


def fit_flow_map(model: FlowMapNet, loaded: LoadedProblem, seed: int) -> Trace:
    """The mean distance of terminal states."""
    x, exact = loaded.rows["fit"], loaded.fitted_ends

    def loss(rows: Tensor) -> Tensor:
        return ((model(x[rows]) - exact[rows]) / model.out).flatten(1).norm(dim=1).mean()

    # The longest of all budgets: it makes no evaluations to count.
    seconds = loaded.share * max(loaded.problem.seconds)
    return train(model, loss, loaded, seed=seed, seconds=seconds, lr=1e-2)
