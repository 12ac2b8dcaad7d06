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

    @property
    def total_env_steps(self) -> int:
        """Environment steps of all iterations."""
        return self.iterations * self.num_envs * self.num_steps


def read_race() -> Race:
    """Return the race given as JSON in the only argument."""
    return Race(**json.loads(sys.argv[1]))


class Stopwatch:
    """Notes when each iteration ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def lap(self) -> None:
        """Note the end of an iteration."""
        self.times.append(time.time())

    def report(self, *packages: str, compile_seconds: float = 0.0) -> None:
        """Print times, peak memory and the versions of `packages`."""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        result = {
            "times": self.times,
            "compile_seconds": compile_seconds,
            "peak_memory_mb": memory / 2 ** (20 if sys.platform == "darwin" else 10),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        }
        print("RESULT " + json.dumps(result), flush=True)
