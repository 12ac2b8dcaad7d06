"""Returns and lengths of episodes that span rollouts."""

import numpy as np
import torch

from lightning_ppo.rollout import Episodes


class EpisodeRecorder:
    """Returns and lengths of episodes that span rollouts; filler rows count for neither.

    An episode that ends in a filler row was broken off when its environment was replaced; it is not reported.

    Attributes:
        skips: (N,) bool, the episode in progress will not be reported.

    Args:
        num_envs: N.
        skip_first: Do not report the first episode of each environment, which may have been cut short.
    """

    def __init__(self, num_envs: int, skip_first: bool = False) -> None:
        self.skip_first = skip_first
        self.skips = np.full(num_envs, skip_first)
        self.returns = np.zeros(num_envs, dtype=np.float64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)

    def record(self, rewards: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> Episodes:
        """Add T steps, each argument (T, N), and return the episodes that ended in them, in order of time."""
        episodes: list[tuple[int, float, int]] = []
        rewards = np.where(valid, rewards, 0.0)
        steps = valid.astype(np.int64)
        total_rewards = np.concatenate((self.returns[None], rewards)).cumsum(0)[1:]
        total_steps = np.concatenate((self.lengths[None], steps)).cumsum(0)[1:]
        self.returns, self.lengths = total_rewards[-1].copy(), total_steps[-1].copy()
        for env in np.flatnonzero(ended.any(0)):
            reward_before, steps_before = 0.0, 0
            for t in np.flatnonzero(ended[:, env]):
                if valid[t, env] and not self.skips[env]:
                    episodes.append(
                        (int(t), total_rewards[t, env] - reward_before, int(total_steps[t, env]) - steps_before)
                    )
                # after a filler row it is a new copy whose first episode begins
                self.skips[env] = self.skip_first and not valid[t, env]
                reward_before, steps_before = total_rewards[t, env], int(total_steps[t, env])
            self.returns[env] -= reward_before
            self.lengths[env] -= steps_before
        episodes.sort(key=lambda episode: episode[0])
        return Episodes(
            torch.tensor([e[1] for e in episodes], dtype=torch.float64),
            torch.tensor([e[2] for e in episodes], dtype=torch.int64),
        )
