"""Analytic vector fields of two-dimensional systems, as modules without parameters.

They compute in the dtype and on the device of the state. Their classes are defined at module level, so they pickle.
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
    """A field that shows its constants in its repr."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self).items() if isinstance(value, float))


class Pendulum(_AnalyticField):
    r"""A pendulum with a spring, friction and a torque u: a data-controlled field.

    .. math::

        \dot q = p / m, \qquad \dot p = -k q - m g l \sin q - \beta p / m + u

    The state is z = (q, p) and the input x = (q_0, p_0, u). The torque u is constant along a solve.

    Parameters
    ----------
    mass, stiffness, length, gravity, friction : float
        The constants m, k, l, g and beta.

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
    r"""The Van der Pol oscillator, which is stiff for large mu.

    .. math:: \dot z_1 = z_2, \qquad \dot z_2 = \mu (1 - z_1^2) z_2 - z_1

    Parameters
    ----------
    mu : float, default 1.0
        Strength of the damping. 0 gives the harmonic oscillator.

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
    r"""The Lotka-Volterra model of prey and predators.

    .. math:: \dot z_1 = \alpha z_1 - \beta z_1 z_2, \qquad \dot z_2 = \delta z_1 z_2 - \gamma z_2

    :math:`\delta z_1 - \gamma \log z_1 + \beta z_2 - \alpha \log z_2` is constant along solutions with positive states.

    Parameters
    ----------
    alpha, beta, gamma, delta : float
        Rates of the prey's growth, its loss to predators, the predators' death, and their growth by prey, in this
        order.

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
    r"""A damped oscillator under a periodic force, as an example of a field that depends on time.

    .. math::

        \dot z_1 = z_2, \qquad
        \dot z_2 = -\omega^2 z_1 - 2 \zeta \omega z_2 + A \cos(\nu t)

    Parameters
    ----------
    frequency : float, default 2.0
        omega, the angular frequency without damping.
    damping : float, default 0.1
        zeta, as a share of the critical damping.
    amplitude : float, default 1.0
        A, the amplitude of the force.
    drive : float, default 3.0
        nu, the angular frequency of the force.

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
    """Take the initial state from the first features of x, as an input map; the others only control the field.

    Parameters
    ----------
    n_features : int
        Number of features of the state.

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
    r"""Draw states and torques for the controlled :class:`Pendulum`, and make its Neural ODE.

    Parameters
    ----------
    n_samples : int, default 2000
        Number of samples.
    random_state : int, RandomState or None
        Seeds the draws.

    Returns
    -------
    X : ndarray of shape (n_samples, 3)
        Features (q, p, u), :math:`(q, p) \sim U(-5, 5)^2` and :math:`u \sim U(-10, 10)`.
    neural_ode : NeuralODE
        Data-controlled, from X to (q, p) at the end of ``t_span=(0, 1)``.

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
