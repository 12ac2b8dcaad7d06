"""Rewards and terminations to learn from, where they differ from those that are reported.

A vector environment of NumPy arrays may give rewards and terminations (N,) to learn from in the infos of every step,
under the names below. Those of its steps then only count for scores and for where episodes end: clipped rewards and
lost lives of Atari games, for example, are learnt from, while whole games with true scores are logged and evaluated.
"""

from typing import Any

REWARDS, TERMINATIONS = "learn_rewards", "learn_terminations"

Lesson = tuple[Any, Any]
"""Rewards (N,) and terminations (N,) bool of a step."""
