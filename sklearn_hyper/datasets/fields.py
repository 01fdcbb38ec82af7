"""Analytic vector fields of two-dimensional systems, as modules without parameters.

They compute in the dtype and on the device of the state. Their classes stand at module level, so they pickle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor, nn

from ..modules.neural_ode import NeuralODE


class _AnalyticField(nn.Module):
    """Shows its constants in its repr."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self).items() if isinstance(value, float))


class Pendulum(_AnalyticField):
    r"""A pendulum with a spring, friction and a torque u: a data-controlled field.

    .. math::

        \dot q = p / m, \qquad \dot p = -k q - m g l \sin q - \beta p / m + u

    The state is z = (q, p), the input x = (q_0, p_0, u); u is the last feature of x and constant along a solve.

    Parameters
    ----------
    mass, stiffness, length, gravity, friction : float
        m, k, l, g and beta.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.datasets import Pendulum
    >>> z, x = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    >>> Pendulum()(torch.tensor(0.0), z, x)
    tensor([[2.0000, 0.9800]])
    """

    def __init__(
        self,
        mass: float = 1.0,
        stiffness: float = 0.5,
        length: float = 1.0,
        gravity: float = 9.81,
        friction: float = 0.01,
    ):
        super().__init__()
        self.mass = float(mass)
        self.stiffness = float(stiffness)
        self.length = float(length)
        self.gravity = float(gravity)
        self.friction = float(friction)

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        q, p = z.unbind(-1)
        velocity = p / self.mass
        force = x[..., -1] - self.stiffness * q - self.friction * velocity
        return torch.stack([velocity, force - self.mass * self.gravity * self.length * torch.sin(q)], dim=-1)


class VanDerPol(_AnalyticField):
    r"""The Van der Pol oscillator; stiff for large mu.

    .. math:: \dot z_1 = z_2, \qquad \dot z_2 = \mu (1 - z_1^2) z_2 - z_1

    Parameters
    ----------
    mu : float, default 1.0
        0 gives the harmonic oscillator.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> VanDerPol(mu=2.0)(torch.tensor(0.0), torch.tensor([[2.0, 1.0]]))
    tensor([[ 1., -8.]])
    """

    def __init__(self, mu: float = 1.0):
        super().__init__()
        self.mu = float(mu)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        position, velocity = z.unbind(-1)
        return torch.stack([velocity, self.mu * (1 - position**2) * velocity - position], dim=-1)


class LotkaVolterra(_AnalyticField):
    r"""Prey and predators.

    .. math:: \dot z_1 = \alpha z_1 - \beta z_1 z_2, \qquad \dot z_2 = \delta z_1 z_2 - \gamma z_2

    :math:`\delta z_1 - \gamma \log z_1 + \beta z_2 - \alpha \log z_2` is constant along solutions with positive states.

    Parameters
    ----------
    alpha, beta, gamma, delta : float
        Growth of the prey, loss to predators, death of predators, their growth by prey.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.datasets import LotkaVolterra
    >>> LotkaVolterra()(torch.tensor(0.0), torch.tensor([[1.0, 1.5]]))  # at rest
    tensor([[0., 0.]])
    """

    def __init__(self, alpha: float = 1.5, beta: float = 1.0, gamma: float = 1.0, delta: float = 1.0):
        super().__init__()
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.gamma = float(gamma)
        self.delta = float(delta)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        prey, predators = z.unbind(-1)
        return torch.stack(
            [prey * (self.alpha - self.beta * predators), predators * (self.delta * prey - self.gamma)], dim=-1
        )


class ForcedOscillator(_AnalyticField):
    r"""A damped oscillator under a periodic force: a field that depends on time.

    .. math::

        \dot z_1 = z_2, \qquad
        \dot z_2 = -\omega^2 z_1 - 2 \zeta \omega z_2 + A \cos(\nu t)

    Parameters
    ----------
    frequency : float, default 2.0
        omega.
    damping : float, default 0.1
        zeta, a share of the critical damping.
    amplitude : float, default 1.0
        A.
    drive : float, default 3.0
        nu.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.datasets import ForcedOscillator
    >>> ForcedOscillator()(torch.tensor(0.0), torch.tensor([[0.0, 0.0]]))
    tensor([[0., 1.]])
    """

    def __init__(self, frequency: float = 2.0, damping: float = 0.1, amplitude: float = 1.0, drive: float = 3.0):
        super().__init__()
        self.frequency = float(frequency)
        self.damping = float(damping)
        self.amplitude = float(amplitude)
        self.drive = float(drive)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        position, velocity = z.unbind(-1)
        force = self.amplitude * torch.cos(self.drive * t)
        resistance = 2 * self.damping * self.frequency * velocity
        return torch.stack([velocity, force - self.frequency**2 * position - resistance], dim=-1)


class LeadingFeatures(nn.Module):
    """Input map that takes the state from the first features of x; the others only control the field.

    Parameters
    ----------
    n_features : int
        Width of the state.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.datasets import LeadingFeatures
    >>> LeadingFeatures(2)(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 2.]])
    """

    def __init__(self, n_features: int):
        super().__init__()
        self.n_features = n_features

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.n_features]

    def extra_repr(self) -> str:
        return f"n_features={self.n_features}"


def make_pendulum(n_samples: int = 2000, random_state: Any = None) -> tuple[NDArray[np.float64], NeuralODE]:
    r"""Draw states and torques for the controlled :class:`Pendulum`, with the Neural ODE that they start.

    Parameters
    ----------
    n_samples : int, default 2000
    random_state : int, RandomState or None

    Returns
    -------
    X : ndarray of shape (n_samples, 3)
        Features (q, p, u), :math:`(q, p) \sim U(-5, 5)^2` and :math:`u \sim U(-10, 10)`.
    neural_ode : NeuralODE
        From X to (q, p) after ``t_span=(0, 1)``, data-controlled.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.datasets import make_pendulum
    >>> X, neural_ode = make_pendulum(5, random_state=0)
    >>> neural_ode(torch.from_numpy(X)).shape
    torch.Size([5, 2])
    """
    half_width = np.array([5.0, 5.0, 10.0])
    X = check_random_state(random_state).uniform(-half_width, half_width, size=(n_samples, 3))
    return X, NeuralODE(Pendulum(), input_map=LeadingFeatures(2), data_controlled=True)
