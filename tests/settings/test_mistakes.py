"""Sixty mistakes and the exact line that each gets: habits from other libraries, wrong values, broken YAML files."""

import re
from pathlib import Path

import pytest

from lightning_ppo.cli import train
from lightning_ppo.run.arguments import read_arguments
from lightning_ppo.settings.loading import as_section, load, valid_keys
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.settings.other_names import OTHER_NAMES
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.errors import ConfigError

HABITS = {
    # Stable-Baselines3
    "total_timesteps=100000": "total_timesteps: here it is total_env_steps",
    "n_envs=8": "n_envs: here it is env.num_envs",
    "n_steps=2048": "n_steps: here it is rollout.num_steps",
    "rollout.n_steps=2048": "rollout.n_steps: here it is rollout.num_steps",
    "batch_size=64": "batch_size: here it is update.minibatch_size",
    "update.batch_size=64": "update.batch_size: here it is update.minibatch_size",
    "n_epochs=10": "n_epochs: here it is update.epochs",
    "ent_coef=0.01": "ent_coef: here it is update.entropy_coefficient",
    "update.vf_coef=0.5": (
        "update.vf_coef: here it is update.value_coefficient, of half the squared error: Stable-Baselines3's 0.5 is 1.0"
    ),
    "policy.net_arch=[64,64]": "policy.net_arch: here it is policy.hidden_sizes",
    "policy_kwargs.net_arch=[64,64]": "policy_kwargs: here it is policy",
    "use_sde=true": "use_sde: here it is policy.distribution=gsde",
    "normalize_advantage=false": "normalize_advantage: here it is update.normalize_advantages",
    "device=cpu": "device: here it is trainer.accelerator",
    "verbose=1": "verbose: here it is trainer.enable_progress_bar",
    "clip_range_vf=0.2": "clip_range_vf: here it is update.value_clip_range",
    "gae_lambda=0.9": "gae_lambda: unknown setting; did you mean rollout.gae_lambda?",
    "policy=MlpPolicy": "policy: expected a mapping of settings, got 'MlpPolicy'",
    # CleanRL
    "--env-id=CartPole-v1": "--env-id: settings are given as name=value, without dashes; here it is env.id",
    "--total-timesteps=100000": (
        "--total-timesteps: settings are given as name=value, without dashes; here it is total_env_steps"
    ),
    "--learning-rate=3e-4": (
        "--learning-rate: settings are given as name=value, without dashes; here it is optimizer.learning_rate=3e-4"
    ),
    "--seed=3": "--seed: settings are given as name=value, without dashes; here it is seed=3",
    "num_minibatches=4": (
        "num_minibatches: here it is update.minibatch_size, which is env.num_envs x rollout.num_steps / the "
        "number of minibatches"
    ),
    "clip_coef=0.2": "clip_coef: here it is update.clip_range",
    "anneal_lr=true": "anneal_lr: here it is optimizer.learning_rate={kind: linear, start: 3e-4, end: 0}",
    "track=true": "track: here it is loggers=[wandb]",
    "--capture-video": (
        "--capture-video: settings are given as name=value, without dashes; here it is the callback "
        "lightning_ppo.RecordVideo, or `evaluate CKPT --video out.mp4` afterwards; the options are --help, "
        "--print-config and --trust"
    ),
    # rsl_rl
    "num_steps_per_env=24": "num_steps_per_env: here it is rollout.num_steps",
    "num_learning_epochs=5": "num_learning_epochs: here it is update.epochs",
    "optimizer.desired_kl=0.01": "optimizer.desired_kl: here it is optimizer.learning_rate.target_kl",
    "init_noise_std=1.0": "init_noise_std: here it is policy.log_std_init, its logarithm",
    "max_iterations=1500": "max_iterations: here it is total_env_steps, in environment steps",
    # RLlib
    "lr=3e-4": "lr: here it is optimizer.learning_rate",
    "optimizer.lr=3e-4": "optimizer.lr: here it is optimizer.learning_rate",
    "train_batch_size=4000": "train_batch_size: here it is env.num_envs x rollout.num_steps",
    "num_workers=4": "num_workers: here it is rollout.processes",
    "grad_clip=0.5": "grad_clip: here it is update.max_grad_norm",
    "lambda=0.95": "lambda: here it is rollout.gae_lambda",
    # Lightning
    "max_epochs=10": "max_epochs: here it is trainer.max_epochs",
    "devices=2": "devices: here it is trainer.devices",
    "trainer.gpus=2": (
        "trainer.gpus: unknown setting of the Trainer; did you mean trainer.devices, with trainer.accelerator=gpu?"
    ),
}

VALUES = {
    "total_env_step=5": "total_env_step: unknown setting; did you mean total_env_steps?",
    "seed=abc": "seed: expected an integer, got 'abc'",
    "seed=1.5": "seed: expected an integer, got 1.5",
    "seed=null": "seed: expected an integer, got null",
    "total_env_steps=many": "total_env_steps: expected an integer, got 'many'",
    "total_env_steps=1.5e0": "total_env_steps: expected an integer, got 1.5",
    "compile=maybe": "compile: expected auto, true or false, got 'maybe'",
    "env=5": "env: expected a mapping of settings, got 5",
    "env.kwargs=3": "env.kwargs: expected a mapping of settings, got 3",
    "env.id=null": "env.id: expected text, got null",
    "rollout.gamma=high": "rollout.gamma: expected a number or a schedule mapping, got 'high'",
    "rollout.gamma=1.5": "rollout.gamma: must be at most 1, got 1.5",
    "update.epochs=2.5": "update.epochs: expected an integer, a schedule or null, got 2.5",
    "policy.hidden_sizes=64": "policy.hidden_sizes: expected a list of integers, got 64",
    "policy.hidden_sizes=[64,wide]": "policy.hidden_sizes[1]: expected an integer, got 'wide'",
    "policy.activation=swish": "policy.activation: expected one of tanh, relu, elu, silu, gelu, got 'swish'",
    "optimizer.betas=0.9": "optimizer.betas: expected a list of numbers, got 0.9",
    "callbacks=3": "callbacks: expected a list, got 3",
    "seed=${nowhere}": "seed: '${nowhere}' refers to a setting that does not exist",
    "seed=???": "seed: ??? stands for a value that is missing; give one",
    "run_dir=${": (
        "run_dir: cannot read the value ${: ${...} refers to another setting, such as ${rollout.num_steps}; "
        "for the text itself write \\${"
    ),
    "update.minibatch_size=${env.id}": "update.minibatch_size: expected an integer, got '${env.id}'",
    "update.minibatch_size=100": (
        "update.minibatch_size: 100 does not divide the rollout of 64 steps x 64 envs = 4096 transitions; the "
        "nearest size that does is 128"
    ),
    "callbacks=[a": "callbacks: cannot read the value [a: a comma is missing, or a { or [ is not closed",
    "env.kwargs={a: 1": "env.kwargs: cannot read the value {a: 1: a comma is missing, or a { or [ is not closed",
    "env.id='CartPole": "env.id: cannot read the value 'CartPole: a quote is not closed",
    "cartpol": "cartpol: there is no such config; did you mean cartpole?",
    "=5": "'=5': expected key=value or the path of a .yaml file",
}

FILES = {
    "env:\n\tid: CartPole-v1\n": "mine.yaml, line 2: a tab; YAML is indented with spaces",
    "seed: 1\nenv:\n  id: CartPole-v1\n   num_envs: 4\n": (
        "mine.yaml, line 4: a colon where no setting can begin; mend the indentation, or put text in quotes"
    ),
    "seed: 1\nrollout:\n  gamma: 0.9\n gae_lambda: 0.9\n": (
        "mine.yaml, line 4: the indentation is not that of the lines above"
    ),
    "seed: 1\nseed: 2\n": "mine.yaml, line 2: `seed` stands there twice; keep one",
    "env: {id: CartPole-v1, num_envs: 4\nseed: 1\n": (
        "mine.yaml, line 2: a comma is missing, or a { or [ is not closed"
    ),
    "env:\n  id: 'CartPole-v1\n": "mine.yaml, line 3: a quote is not closed",
    "seed: 1\nrun_dir: @home\n": "mine.yaml, line 2: a character that no value begins with; put text in quotes",
    "seed: 1\nenv: id: CartPole-v1\n": (
        "mine.yaml, line 2: a colon where no setting can begin; mend the indentation, or put text in quotes"
    ),
    "env:\n  id CartPole-v1\n  num_envs: 4\n": (
        "mine.yaml, line 3: a colon where no setting can begin; mend the indentation, or put text in quotes"
    ),
    "- seed: 1\n": "mine.yaml: expected a mapping of settings at the top level",
    "seed: 1\nrun_dir: !!python/object:os.system x\n": (
        "mine.yaml, line 2: `!` begins a type that is not known; put text in quotes"
    ),
    "seed: 1\nrun_dir: *home\n": (
        "mine.yaml, line 2: `*` begins a reference to an anchor that is not there; put text in quotes"
    ),
}


def line_of(arguments: list) -> str:
    with pytest.raises(ConfigError) as error:
        read_arguments(arguments)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("argument", "line"), (HABITS | VALUES).items(), ids=[*HABITS, *VALUES])
def test_a_wrong_argument_gets_this_line(argument: str, line: str) -> None:
    if argument.startswith("trainer."):
        from lightning_ppo.run.launch import check_trainer_settings

        with pytest.raises(ConfigError) as error:
            check_trainer_settings(load([], [argument]).trainer)
        assert str(error.value) == line
    else:
        assert line_of([argument]) == line


@pytest.mark.parametrize(("text", "line"), FILES.items(), ids=range(len(FILES)))
def test_a_broken_file_gets_this_line(text: str, line: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    assert line_of(["mine.yaml"]) == line


def test_there_are_sixty_mistakes_half_of_them_habits() -> None:
    assert len(HABITS) >= 30 and len(HABITS) + len(VALUES) + len(FILES) >= 60


def test_a_name_of_another_library_is_none_of_ours_and_leads_to_one_that_is() -> None:
    keys = valid_keys(Config, "")
    free = ("trainer.", "the callback", "optimizer.learning_rate.")
    for name, here in OTHER_NAMES.items():
        assert name not in [key.rpartition(".")[2] for key in keys], name
        key = re.match(r"[a-z_.]+", here)[0]
        assert key in keys or key in ("policy",) or here.startswith(free), (name, here)


def test_the_migration_page_and_the_messages_say_the_same() -> None:
    """Each name that the page has in its first column leads to the setting that stands in its row."""
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
    compared = 0
    for row in re.findall(r"^\| .* \|$", page, re.M):
        first, *others = row.strip("| ").split(" | ")
        names = [name.lstrip("-").replace("-", "_") for name in re.findall(r"`([\w-]+)`", first)]
        for name in names:
            if name in OTHER_NAMES:
                key = re.match(r"[\w.]+", OTHER_NAMES[name])[0]
                assert name in ("device", "cuda", "tensorboard_log") or key in others[-1] or key == "the", (name, row)
                compared += 1
    assert compared >= 20


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    config = read_arguments(["total_env_steps=1e6", "env.num_envs=8.0", "policy.hidden_sizes=[1e2,64]"])
    assert config.total_env_steps == 1_000_000 and type(config.total_env_steps) is int
    assert config.env.num_envs == 8 and config.policy.hidden_sizes == [100, 64]
    assert read_arguments([{"total_env_steps": 2e5}]).total_env_steps == 200_000
    assert as_section(PolicyConfig, {"core_size": 32.0}, "policy").core_size == 32


def test_help_shows_any_section_or_setting_with_type_and_default(capsys) -> None:
    assert train.main(["--help", "rollout"]) == 0
    text = capsys.readouterr().out
    assert "rollout.num_steps=64  (int)" in text and "T, steps per environment and iteration." in text
    assert train.main(["--help", "env.id"]) == 0
    assert "env.id=CartPole-v1  (str)" in capsys.readouterr().out
    assert train.main(["cartpole", "--help"]) == 0
    assert "total_env_steps=1000000  (int)" in capsys.readouterr().out
    assert train.main(["--help", "rolout"]) == 2
    assert capsys.readouterr().err == "error: --help rolout: no such section or setting; did you mean rollout?\n"
