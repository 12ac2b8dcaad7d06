"""Kill the training process with SIGKILL, resume, and end where a run ends that was never killed.

`python tests/whole/crash_test.py --kills 20` kills at random moments and at points where it would hurt most, for
CartPole, HalfCheetah and an environment of linked objects with a growing history, and prints a table. pytest runs a
short version.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightning_ppo.cli import train
from tests.kit.preloaded import Process
from tests.kit.resuming import differences

SETTINGS = [
    *("env.num_envs=8", "rollout.num_steps=32", "update.epochs=2", "rollouts_per_epoch=2", "total_env_steps=8192"),
    *("evaluation.episodes=2", "evaluation.final_episodes=2", "evaluation.num_envs=2"),
]
POINTS = ("collected", "minibatch", "half written", "before rename", "between renames", "half a row", "after a row")


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, count: int) -> None:
    """Make this process kill itself when it comes to a point for the `count`-th time."""
    from lightning_ppo.collection import collector
    from lightning_ppo.run import loggers
    from lightning_ppo.support import files
    from lightning_ppo.update import ppo as module

    left = iter(range(count - 1, -1, -1))

    def due() -> bool:
        return next(left, 1) == 0

    def then_kill(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            result = original(*args, **kwargs)
            if due():
                kill_self()
            return result

        setattr(owner, name, wrapped)

    fsync, replace = os.fsync, os.replace

    def half_written(descriptor):
        fsync(descriptor)
        if "ckpt" in os.readlink(f"/proc/self/fd/{descriptor}") and due():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            kill_self()

    def replace_unless(name):
        def wrapped(source, target):
            if Path(target).name == name and due():
                kill_self()
            replace(source, target)

        return wrapped

    def half_a_row(self, metrics, step=None):
        if due():
            with open(self.path, "a") as file:
                file.write("12")
            kill_self()
        return log_metrics(self, metrics, step)

    log_metrics = loggers.MetricsCSV.log_metrics
    if point == "collected":
        then_kill(collector.Collector, "collect")
    elif point == "minibatch":
        then_kill(module.PPO, "on_before_optimizer_step")
    elif point == "half written":
        files.os.fsync = half_written
    elif point == "before rename":
        files.os.replace = replace_unless("last-1.ckpt")
    elif point == "between renames":
        files.os.replace = replace_unless("last.ckpt")
    elif point == "half a row":
        loggers.MetricsCSV.log_metrics = half_a_row
    elif point == "after a row":
        then_kill(loggers.MetricsCSV, "log_metrics")


def train_and_die(point: str, count: int, arguments: list[str]) -> int:
    """Train, and die where `arm` says; under torchrun the rank named by VICTIM does so, in its first life."""
    os.nice(5)
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first_life and os.environ.get("RANK") == os.environ.get("VICTIM"):
        arm(point, count)
    return train.main(arguments)


class Child:
    """One process that trains until it is done or killed."""

    def __init__(self, settings: list[str], run_dir: Path, point: str = "", count: int = 0) -> None:
        arguments = [*settings, f"run_dir={run_dir}", "resume=auto"]
        self.started = time.monotonic()
        ours, theirs = os.pipe()
        self.process = Process(train_and_die, (point, count, arguments), theirs, theirs)
        self.process.start()
        os.close(theirs)
        self.stream = os.fdopen(ours)
        self.output: list[str] = []
        self.training = threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        for line in self.stream:
            self.output.append(line)
            if "writing to" in line:
                self.training.set()
        self.training.set()

    def wait(self) -> int:
        self.process.join(300)
        self.process.kill()
        self.process.join()
        self.reader.join()
        self.stream.close()
        return self.process.exitcode

    def kill_after(self, seconds: float) -> int:
        self.process.join(seconds)
        self.process.kill()
        return self.wait()


def crash(settings: list[str], folder: Path, kills: list[str], seed: int = 0) -> tuple[list[str], int]:
    """Kill as often as `kills` names points or "random", training again and again; return what differed, and runs."""
    generator = random.Random(seed)
    undisturbed = Child(settings, folder / "reference")
    undisturbed.training.wait()
    startup = time.monotonic() - undisturbed.started
    assert undisturbed.wait() == 0, "".join(undisturbed.output)
    duration = time.monotonic() - undisturbed.started - startup
    found: list[str] = []
    done, runs = 0, 0
    while done < len(kills):
        run_dir = folder / f"run{runs}"
        runs += 1
        finished = False
        while not finished:
            if done == len(kills):
                child = Child(settings, run_dir)
                code = child.wait()
            elif kills[done] == "random":
                child = Child(settings, run_dir)
                if generator.random() < 0.8:
                    child.training.wait()
                code = child.kill_after(generator.uniform(0.0, duration if child.training.is_set() else startup))
            else:
                child = Child(settings, run_dir, kills[done], generator.randint(1, 6))
                code = child.wait()
            assert code in (0, -signal.SIGKILL), "".join(child.output)
            finished = code == 0
            done += not finished
        found += differences(folder / "reference", run_dir)
    return found, runs


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        ([], ["minibatch", "between renames", "random"]),
        (["policy.core=lstm", "env.backend=async"], ["minibatch"]),
        (["env.id=tests.kit.envs:Village"], ["minibatch", "random"]),
    ],
    ids=["plain", "memory and processes", "linked objects"],
)
def test_killed_runs_end_like_undisturbed_ones(settings, kills, tmp_path):
    found, _ = crash(["env.id=CartPole-v1", *SETTINGS, *settings], tmp_path, kills)
    assert found == []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills per environment, half of them at named points")
    parser.add_argument("--envs", nargs="+", default=["CartPole-v1", "HalfCheetah-v5", "tests.kit.envs:Village"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    print("| environment | kills | runs | what differed from the undisturbed run |\n|---|---|---|---|")
    for env in options.envs:
        kills = ["random" if k % 2 else POINTS[k // 2 % len(POINTS)] for k in range(options.kills)]
        with tempfile.TemporaryDirectory() as folder:
            found, runs = crash([f"env.id={env}", *SETTINGS], Path(folder), kills, options.seed)
        failed |= bool(found)
        print(f"| {env} | {options.kills} | {runs} | {'; '.join(found) or 'nothing'} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(train_and_die(sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
    sys.exit(main())
