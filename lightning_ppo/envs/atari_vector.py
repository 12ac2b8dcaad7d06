"""The native vector environment of ale_py: games stepped by C++ threads."""

from typing import Any

import numpy as np
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode


class NativeAtari(AtariVectorEnv):
    """N copies of a game in whole episodes with their true scores, each with a seed of its own.

    Its own `episodic_life` would start the game again whenever a life is lost.

    Args:
        game: Name of the ROM.
        num_envs: N.
        kwargs: Settings of `ale_py.AtariVectorEnv`.
    """

    seeded_by_copy = True

    def __init__(self, game: str, num_envs: int, **kwargs: Any) -> None:
        self.metadata: dict[str, Any] = {}  # ale_py writes into it, and would into that of every vector environment
        super().__init__(game, num_envs, reward_clipping=False, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all games anew, copy i from `seed[i]`, or from `seed + i` where it is one number."""
        # ALE's seeds are signed 32-bit numbers
        seeds = np.array(seed, dtype=np.int64) % 2**31 if isinstance(seed, list) else seed
        return super().reset(seed=seeds, options=options)
