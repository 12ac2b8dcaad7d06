"""Play whole episodes with a policy whose weights and statistics stay as they are."""

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from lightning_ppo.envs.stepper import VectorStepper, check_finite
from lightning_ppo.episodes import EpisodeRecorder
from lightning_ppo.errors import EnvironmentFault
from lightning_ppo.policy import ActorCritic, eval_mode
from lightning_ppo.rollout import Episodes
from lightning_ppo.tree import tree_map

MAX_EPISODE_STEPS = 100_000
"""Steps after which an evaluation episode is taken to be endless."""


@torch.no_grad()
def play(
    policy: ActorCritic,
    env: VectorEnv,
    episodes: int,
    *,
    seeds: list[int],
    deterministic: bool = True,
    seed: int = 0,
    action_mask: str = "auto",
) -> Episodes:
    """Play `episodes` whole episodes and return their undiscounted returns and lengths.

    Each copy of the environment plays a fixed share of them: taking whichever episodes end first would favour short
    ones. The environments are reset first, so the result depends on nothing but the arguments.

    Args:
        policy: Left in the mode (train or eval) it was in.
        env: Vector environment; the rewards counted are those it returns.
        episodes: Number of episodes, at least 1.
        seeds: One seed per copy of the environment.
        deterministic: Play the mode of the action distribution instead of sampling.
        seed: Seed of the sampling.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.

    Raises:
        ValueError: If `episodes` is less than 1.
        EnvironmentFault: If the environment misbehaves, or an episode does not end within MAX_EPISODE_STEPS.
    """
    if episodes < 1:
        raise ValueError(f"expected at least one episode, got {episodes}")
    num_envs = env.num_envs
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    stepper, recorder = VectorStepper(env, action_mask), EpisodeRecorder(num_envs)
    stepper.reset(seeds)
    states = policy.initial_states(num_envs)
    returns, lengths = [], []

    def tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x)).to(device)

    with eval_mode(policy):
        while quota.any():
            if recorder.lengths.max(where=quota > 0, initial=0) >= MAX_EPISODE_STEPS:
                raise EnvironmentFault(
                    f"an evaluation episode has not ended after {MAX_EPISODE_STEPS} steps; give the environment a time "
                    "limit, or set evaluation.episodes=0 and evaluation.final_episodes=0"
                )
            actions, states = policy.step(
                tree_map(tensor, stepper.observations),
                states,
                tensor(stepper.starts),
                action_masks=None if stepper.action_masks is None else tensor(stepper.action_masks),
                deterministic=deterministic,
                generator=generator,
            )
            rewards, terminations, truncations = stepper.step(tree_map(lambda x: x.cpu().numpy(), actions))
            check_finite(tree_map(lambda x: x[None], stepper.observations), rewards[None, :0], stepper.num_steps)
            check_finite((), rewards[None], stepper.num_steps - 1)
            ended = terminations | truncations
            finished = recorder.record(rewards[None], ended[None], ~stepper.filler[None])
            for position, index in enumerate(np.flatnonzero(ended & ~stepper.filler)):
                if quota[index]:
                    quota[index] -= 1
                    returns.append(finished.returns[position])
                    lengths.append(finished.lengths[position])
    return Episodes(torch.stack(returns), torch.stack(lengths))
