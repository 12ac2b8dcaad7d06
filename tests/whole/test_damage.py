"""Whatever a config says or a checkpoint holds: one line that names the problem, and never a traceback or a hang.

`pytest tests/whole/test_damage.py --hypothesis-profile thorough` tries a thousand configs.
"""

import contextlib
import io
import random
import sys
import warnings

import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_ppo.cli import main as command
from lightning_ppo.cli import train
from lightning_ppo.settings.loading import to_container
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.checkpoint_files import read_checkpoint
from lightning_ppo.support.errors import CheckpointError
from tests.kit.commands import SMALL
from tests.kit.resuming import Planted, same

DEFAULTS = to_container(Config())
CHEAP = {
    "env.num_envs": 2,
    "rollout.num_steps": 8,
    "update.epochs": 1,
    "update.minibatch_size": 16,
    "rollouts_per_epoch": 1,
    "evaluation.episodes": 1,
    "evaluation.final_episodes": 1,
    "evaluation.num_envs": 1,
    "total_env_steps": 32,
    "trainer.enable_progress_bar": False,
}
"""A run that takes a moment, should a damaged config turn out to be whole."""

TRAINER = ["max_epochs", "max_steps", "max_time", "min_epochs", "precision", "accelerator", "limit_val_batches"]
TRAINER += ["log_every_n_steps", "val_check_interval", "check_val_every_n_epoch", "deterministic", "nonsense"]


def keys(tree: dict, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings, and of their sections."""
    found = []
    for name, value in tree.items():
        found += [prefix + name, *(keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
    return found


NAMES = [name for name in keys(DEFAULTS) if name not in ("run_dir", "debug", "compile")]
NAMES += [f"trainer.{name}" for name in TRAINER]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(width=32),
    st.sampled_from(
        [10**30, -(10**30), "", "auto", "abc", "1e-3", "null", "${seed}", "${nowhere}", "???", "\x00", "ü\n"]
    ),
    st.text(max_size=8),
)
names = st.sampled_from(["kind", "start", "a", "points"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=4
)
damage = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(NAMES), values),
        st.tuples(st.sampled_from(NAMES).map(lambda name: name[:-1]), values),
        st.tuples(st.text(min_size=1, max_size=6), values),
    ),
    min_size=1,
    max_size=3,
)


def put(tree: dict, name: str, value) -> None:
    *sections, last = name.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value


def attempt(run, *arguments: str) -> tuple[int, str, str]:
    """Return the exit code and both outputs of a command that must not raise."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = run(list(arguments))
    return code, out.getvalue(), err.getvalue()


def test_damaged_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried = []

    @settings(suppress_health_check=list(HealthCheck))
    @given(damage)
    def try_one(changes):
        config: dict = {}
        for name, value in [*CHEAP.items(), *changes]:
            put(config, name, value)
        config_file, run_dir = tmp_path / "damaged.yaml", tmp_path / f"run{len(tried)}"
        config_file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        tried.append(changes)
        fixed = ["total_env_steps=32"] if any(name.startswith("total") for name, _ in changes) else []
        code, out, err = attempt(train.main, str(config_file), f"run_dir={run_dir}", *fixed)
        assert code in (0, 1, 2)
        assert "Traceback" not in out + err
        if code:
            assert err.count("\n") == 1 and err.startswith("error: "), err
        if code == 2:
            assert not run_dir.exists(), (changes, list(run_dir.iterdir()))

    try_one()
    assert len(tried) >= settings.default.max_examples / 2


def evaluate(arguments: list[str]) -> int:
    return command(["evaluate", *arguments, "--episodes", "1"])


def read(arguments: list[str]) -> int:
    """Do what every command begins with, and say what is wrong as every command does."""
    try:
        read_checkpoint(arguments[0])
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def test_damaged_checkpoints(tmp_path):
    run_dir, sentinel = tmp_path / "run", tmp_path / "sentinel"
    assert attempt(train.main, *SMALL, "env.id=Pendulum-v1", "total_env_steps=128", f"run_dir={run_dir}")[0] == 0
    whole = (run_dir / "checkpoints" / "last.ckpt").read_bytes()
    reference = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    bad, generator = tmp_path / "bad" / "last.ckpt", random.Random(1)
    bad.parent.mkdir()

    def check(through_command: bool = True) -> None:
        code, out, err = attempt(evaluate if through_command else read, str(bad))
        assert "Traceback" not in out + err
        if code:
            assert err.count("\n") == 1 and str(bad) in err, err
        else:
            assert same(torch.load(bad, weights_only=True), reference)
        assert not sentinel.exists()

    for number in range(50):
        bad.write_bytes(whole[: generator.randrange(len(whole))])
        check(number % 10 == 0)
    for number in range(40):
        flipped = bytearray(whole)
        for _ in range(generator.choice([1, 1, 10])):
            flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        bad.write_bytes(flipped)
        check(number % 8 == 0)
    for key in (*reference, "stranger"):
        torch.save({**reference, key: Planted(sentinel)}, bad)
        check()
    torch.save(Planted(sentinel), bad, _use_new_zipfile_serialization=False)
    check()
    torch.save({"ppo": 1, "hyper_parameters": 2}, bad)
    check()
