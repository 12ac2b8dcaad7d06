"""What every racer shares: settings from the command line, and its report to `benchmarks/speed.py`, one line of JSON.

Standard library only: racers run in virtual environments of their own, and find this file beside them.
"""

import json
import platform
import resource
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version


@dataclass
class Race:
    """The task of a racer, the same for all."""

    system: str
    """Name of the racer, for scripts that run several."""
    env_id: str
    num_envs: int
    num_steps: int
    """T, steps per environment and iteration."""
    epochs: int
    minibatch_size: int
    iterations: int
    """Rollouts trained on."""
    normalize: bool
    """Normalise observations and scale rewards."""
    seed: int
    cores: int = 1
    """Cores, and threads of torch."""

    @property
    def is_atari(self) -> bool:
        """Whether the task is a game of the Arcade Learning Environment, seen as pictures."""
        return self.env_id.startswith("ALE/")

    @property
    def total_env_steps(self) -> int:
        """Environment steps of all iterations."""
        return self.iterations * self.env_steps_per_iteration

    @property
    def env_steps_per_iteration(self) -> int:
        """Environment steps of one iteration."""
        return self.num_envs * self.num_steps


def read_race() -> Race:
    """Return the race given as JSON in the only argument."""
    return Race(**json.loads(sys.argv[1]))


class Stopwatch:
    """Notes when each iteration ended, and after how many environment steps."""

    def __init__(self, env_steps_per_lap: int) -> None:
        self.env_steps_per_lap = env_steps_per_lap
        self.times: list[float] = []
        self.env_steps: list[int] = []

    def lap(self, env_steps: int | None = None) -> None:
        """Note the end of an iteration.

        Args:
            env_steps: All that were made, where it is less than what fits into the rollouts so far.
        """
        self.times.append(time.time())
        self.env_steps.append(len(self.times) * self.env_steps_per_lap if env_steps is None else env_steps)

    def report(self, *packages: str, compile_seconds: float = 0.0) -> None:
        """Print times, peak memory and the versions of `packages`."""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        result = {
            "times": self.times,
            "env_steps": self.env_steps,
            "compile_seconds": compile_seconds,
            "peak_memory_mb": memory / 2 ** (20 if sys.platform == "darwin" else 10),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        }
        print("RESULT " + json.dumps(result), flush=True)
