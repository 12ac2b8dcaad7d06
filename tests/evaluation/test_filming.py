"""Which frames of which episodes are taken."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from lightning_ppo.evaluation.video import _Filmed


class Shown(gymnasium.Env):
    """Lasts two steps and shows how many it has made."""

    observation_space, action_space = spaces.Box(0.0, 9.0, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, end: str) -> None:
        self.end, self.t = end, 0

    def reset(self, **kwargs):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == 2
        ends = (over, False) if self.end == "terminated" else (False, over)
        return np.full(1, self.t, np.float32), 1.0, *ends, {}

    def render(self):
        return np.full((2, 2, 3), self.t, np.uint8)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_no_frame_is_taken_of_the_episode_after_the_last_one(end):
    frames: list[int] = []
    env = _Filmed(Shown(end), [lambda frame: frames.append(int(frame[0, 0, 0]))], 2)
    for _ in range(2):
        env.reset()
        for _ in range(2):
            env.step(0)
    env.reset()
    assert frames == [0, 1, 2, 0, 1, 2]
