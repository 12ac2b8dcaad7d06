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
    "total_timesteps=100000": "",
    "n_envs=8": "",
    "n_steps=2048": "",
    "rollout.n_steps=2048": "",
    "batch_size=64": "",
    "update.batch_size=64": "",
    "n_epochs=10": "",
    "ent_coef=0.01": "",
    "update.vf_coef=0.5": "",
    "policy.net_arch=[64,64]": "",
    "policy_kwargs.net_arch=[64,64]": "",
    "use_sde=true": "",
    "normalize_advantage=false": "",
    "device=cpu": "",
    "verbose=1": "",
    "clip_range_vf=0.2": "",
    "gae_lambda=0.9": "",
    "policy=MlpPolicy": "",
    # CleanRL
    "--env-id=CartPole-v1": "",
    "--total-timesteps=100000": "",
    "--learning-rate=3e-4": "",
    "--seed=3": "",
    "num_minibatches=4": "",
    "clip_coef=0.2": "",
    "anneal_lr=true": "",
    "track=true": "",
    "--capture-video": "",
    # rsl_rl
    "num_steps_per_env=24": "",
    "num_learning_epochs=5": "",
    "optimizer.desired_kl=0.01": "",
    "init_noise_std=1.0": "",
    "max_iterations=1500": "",
    # RLlib
    "lr=3e-4": "",
    "optimizer.lr=3e-4": "",
    "train_batch_size=4000": "",
    "num_workers=4": "",
    "grad_clip=0.5": "",
    "lambda=0.95": "",
    # Lightning
    "max_epochs=10": "",
    "devices=2": "",
    "trainer.gpus=2": "",
}

VALUES = {
    "total_env_step=5": "",
    "seed=abc": "",
    "seed=1.5": "",
    "seed=null": "",
    "total_env_steps=many": "",
    "total_env_steps=1.5e0": "",
    "compile=maybe": "",
    "env=5": "",
    "env.kwargs=3": "",
    "env.id=null": "",
    "rollout.gamma=high": "",
    "rollout.gamma=1.5": "",
    "update.epochs=2.5": "",
    "policy.hidden_sizes=64": "",
    "policy.hidden_sizes=[64,wide]": "",
    "policy.activation=swish": "",
    "optimizer.betas=0.9": "",
    "callbacks=3": "",
    "seed=${nowhere}": "",
    "seed=???": "",
    "run_dir=${": "",
    "update.minibatch_size=${env.id}": "",
    "update.minibatch_size=100": "",
    "callbacks=[a": "",
    "env.kwargs={a: 1": "",
    "env.id='CartPole": "",
    "cartpol": "",
    "=5": "",
}

FILES = {
    "env:\n\tid: CartPole-v1\n": "",
    "seed: 1\nenv:\n  id: CartPole-v1\n   num_envs: 4\n": "",
    "seed: 1\nrollout:\n  gamma: 0.9\n gae_lambda: 0.9\n": "",
    "seed: 1\nseed: 2\n": "",
    "env: {id: CartPole-v1, num_envs: 4\nseed: 1\n": "",
    "env:\n  id: 'CartPole-v1\n": "",
    "seed: 1\nrun_dir: @home\n": "",
    "seed: 1\nenv: id: CartPole-v1\n": "",
    "env:\n  id CartPole-v1\n  num_envs: 4\n": "",
    "- seed: 1\n": "",
    "seed: 1\nrun_dir: !!python/object:os.system x\n": "",
    "seed: 1\nrun_dir: *home\n": "",
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
                assert name in ("device", "cuda") or key in others[-1] or key == "the", (name, row)
                compared += 1
    assert compared > 30


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
