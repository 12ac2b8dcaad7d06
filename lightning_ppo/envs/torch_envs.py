"""CartPole and Pendulum written in torch: thousands of copies in a handful of tensor operations, on any device.

The dynamics are those of Gymnasium's CartPole-v1 and Pendulum-v1, in `dtype`. Nothing here waits for the device, and no
copy is treated by itself.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lightning_ppo.speed import switch
from lightning_ppo.speed.graphs import Recorded, can_record


class TorchVectorEnv(VectorEnv, ABC):
    """N copies of a task whose state is one tensor (N, S), with a time limit and SAME_STEP autoreset.

    Every step gives `final_obs` (N, ...) of all copies; of use are those whose episode ended. On a GPU steps replay the
    first one as a CUDA graph, so what `observe` and `advance` return may depend on nothing but their arguments.

    Attributes:
        stagger: Truncate the first episode of each copy after a random share of the limit (see `FirstEpisodeLimit`).
        state: (N, S); None before the first reset.
        steps: (N,) int64, steps of the episodes in progress.

    Args:
        num_envs: N.
        device: Where everything happens. `cuda` is the current CUDA device at the first reset.
        max_episode_steps: Episodes are truncated after so many steps.
        dtype: Of the state; observations and rewards are float32.
    """

    not_state = ("_advance",)
    """How steps are computed, which depends on the device."""

    single_observation_space: spaces.Box
    stagger = False

    def __init__(
        self,
        num_envs: int,
        device: str = "cpu",
        max_episode_steps: int = 500,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs, self.device = num_envs, device
        self.max_episode_steps, self.dtype = max_episode_steps, dtype
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.state: Any = None
        self.steps: Any = None
        self._limits: Any = None
        self._generator: Any = None
        self._advance: Any = self._step

    @abstractmethod
    def initial_states(self) -> Tensor:
        """Draw states (N, S) in which episodes start."""

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """Return observations (N, ...) of states (N, S)."""

    @abstractmethod
    def advance(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states (N, S), rewards (N,) and terminations (N,) bool that actions (N, ...) lead to."""

    def uniform(self, size: int, bound: float | Tensor) -> Tensor:
        """Draw (N, size) numbers from [-bound, bound]."""
        drawn = torch.empty(self.num_envs, size, dtype=self.dtype, device=self.device)
        return drawn.uniform_(-1.0, 1.0, generator=self._generator) * bound

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Start all episodes anew.

        Args:
            seed: Of the one source of random numbers; of a sequence the first counts.
            options: Not used.
        """
        if seed is not None or self._generator is None:
            self._generator = torch.Generator(self.device)
            first = seed if isinstance(seed, int | None) else next(iter(seed))
            self._generator.seed() if first is None else self._generator.manual_seed(int(first))
        self.state = self.initial_states()
        self.record_anew()
        self.steps = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._limits = torch.full_like(self.steps, self.max_episode_steps)
        if self.stagger:
            self._limits.random_(1, self.max_episode_steps + 1, generator=self._generator)
        return self.observe(self.state), {}

    def record_anew(self) -> None:
        """Have the next step recorded, where steps are: a recording knows nothing of attributes set since."""
        records = switch.is_on() and self.state is not None and can_record(self.state.device)
        self._advance = Recorded(self._step).__call__ if records else self._step

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all copies with actions (N, ...) on the environment's device."""
        # a clone, since a recording copies only what is another object than before
        now = self.state, self.steps, self._limits, self.initial_states(), actions.clone()
        (self.state, self.steps, self._limits), results, final = self._advance(*now)
        return (*results, {"final_obs": final})

    def _step(self, before: Tensor, steps: Tensor, limits: Tensor, fresh: Tensor, actions: Tensor) -> Any:
        """Return states, steps and limits after a step, what it shows, and the final observations."""
        state, rewards, terminations = self.advance(before, actions)
        steps = steps + 1
        truncations = steps >= limits
        ended = terminations | truncations
        after = torch.where(ended.unsqueeze(1), fresh, state)
        steps = torch.where(ended, 0, steps)
        if self.stagger:
            limits = torch.where(ended, self.max_episode_steps, limits)
        results = self.observe(after), rewards, terminations, truncations
        return (after, steps, limits), results, self.observe(state)


class TorchCartPole(TorchVectorEnv):
    """Gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983) with the equations of Florian 2007."""

    gravity, cart_mass, pole_mass, half_length, force = 9.8, 1.0, 0.1, 0.5, 10.0
    seconds = 0.02
    """Duration of a step."""
    x_limit, angle_limit = 2.4, 12 * 2 * math.pi / 360

    single_observation_space = spaces.Box(
        -np.array([4.8, np.inf, 2 * angle_limit, np.inf], np.float32),
        np.array([4.8, np.inf, 2 * angle_limit, np.inf], np.float32),
    )
    single_action_space: gymnasium.Space = spaces.Discrete(2)

    def initial_states(self) -> Tensor:
        """Draw position, velocity, angle and angular velocity, each from [-0.05, 0.05]."""
        return self.uniform(4, 0.05)

    def observe(self, state: Tensor) -> Tensor:
        """Return the state."""
        return state.float()

    def advance(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Push the carts to the left (0) or right (1) for one step."""
        mass, moment = self.cart_mass + self.pole_mass, self.pole_mass * self.half_length
        velocity, angle, angular_velocity = state[:, 1], state[:, 2], state[:, 3]
        sine, cosine = angle.sin(), angle.cos()
        # Florian 2007, "Correct equations for the dynamics of the cart-pole system", equations 23 and 24
        push = (actions * (2 * self.force) - self.force + moment * angular_velocity.square() * sine) / mass
        turning = (self.gravity * sine - cosine * push) / (
            self.half_length * (4.0 / 3.0 - self.pole_mass * cosine.square() / mass)
        )
        acceleration = push - moment * turning * cosine / mass
        after = state + self.seconds * torch.stack((velocity, acceleration, angular_velocity, turning), 1)
        terminations = (after[:, 0].abs() > self.x_limit) | (after[:, 2].abs() > self.angle_limit)
        return after, torch.ones_like(velocity, dtype=torch.float32), terminations


class TorchPendulum(TorchVectorEnv):
    """Gymnasium's Pendulum-v1."""

    gravity, mass, length, max_speed, max_torque = 10.0, 1.0, 1.0, 8.0, 2.0
    seconds = 0.05
    """Duration of a step."""

    single_observation_space = spaces.Box(-np.array([1, 1, 8], np.float32), np.array([1, 1, 8], np.float32))
    single_action_space: gymnasium.Space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, num_envs: int, device: str = "cpu", max_episode_steps: int = 200, **kwargs: Any) -> None:
        super().__init__(num_envs, device, max_episode_steps, **kwargs)

    def initial_states(self) -> Tensor:
        """Draw an angle from [-pi, pi] and an angular velocity from [-1, 1]."""
        drawn = self.uniform(2, 1.0)
        drawn[:, 0] *= math.pi
        return drawn

    def observe(self, state: Tensor) -> Tensor:
        """Return cosine and sine of the angle, and the angular velocity."""
        angle, velocity = state.unbind(1)
        return torch.stack((angle.cos(), angle.sin(), velocity), 1).float()

    def advance(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply torques (N, 1) for one step."""
        angle, velocity = state.unbind(1)
        torque = actions[:, 0].clamp(-self.max_torque, self.max_torque)
        upright = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        costs = upright.square() + 0.1 * velocity.square() + 0.001 * torque.square()
        acceleration = 1.5 * self.gravity / self.length * angle.sin() + 3.0 / (self.mass * self.length**2) * torque
        velocity = (velocity + acceleration * self.seconds).clamp(-self.max_speed, self.max_speed)
        after = torch.stack((angle + velocity * self.seconds, velocity), 1)
        return after, -costs.float(), torch.zeros_like(costs, dtype=torch.bool)
