"""Settings: merging, types, ranges, and messages that name the key."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lightning_ppo.settings.algorithm import (
    NormalizeConfig,
    OptimizerConfig,
    RolloutConfig,
    UpdateConfig,
    check_rollout_size,
)
from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
from lightning_ppo.settings.loading import as_section, load, to_container, to_yaml
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.errors import ConfigError, nearest


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def message(error: pytest.ExceptionInfo) -> str:
    """The message, which must be one line."""
    text = str(error.value)
    assert text and "\n" not in text
    return text


# ---------------------------------------------------------------- merging


def test_no_arguments_give_the_defaults() -> None:
    assert load() == Config()


def test_files_merge_in_order_and_overrides_win(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "env: {id: A-v0, num_envs: 2}\nrollout: {gamma: 0.9, num_steps: 128}\nseed: 3\n")
    second = write(tmp_path / "b.yaml", "env:\n  num_envs: 4\nrollout:\n  gamma: 0.8\n")
    config = load([first, second], ["rollout.gamma=0.7", "seed=5", "seed=6"])
    assert (config.env.id, config.env.num_envs, config.rollout.num_steps) == ("A-v0", 4, 128)
    assert (config.rollout.gamma, config.seed) == (0.7, 6)
    # the other order
    assert load([second, first]).env.num_envs == 2
    # what nobody mentions keeps its default
    assert config.update == UpdateConfig() and config.rollout.gae_lambda == RolloutConfig().gae_lambda


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load([write(tmp_path / "empty.yaml", "# nothing\n")]) == Config()


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("3e-4", 3e-4), ("2.5E-4", 2.5e-4), ("1e2", 100.0)])
def test_exponents_without_a_dot_are_numbers(text: str, value: float, tmp_path: Path) -> None:
    # plain YAML 1.1 reads 1e-4 as a string
    file = write(tmp_path / "a.yaml", f"optimizer: {{learning_rate: {text}, epsilon: {text}}}\n")
    for config in (load([file]), load([], [f"optimizer.learning_rate={text}", f"optimizer.epsilon={text}"])):
        assert config.optimizer.schedule()(0.0) == value
        assert config.optimizer.epsilon == value and config.optimizer.learning_rate == value


def test_overrides_are_typed() -> None:
    overrides = ["env.num_envs=2", "rollout.num_steps=50", "update.epochs=2", "update.minibatch_size=4", "compile=true"]
    overrides += ["policy.hidden_sizes=[32,16]", "update.max_grad_norm=null", "run_dir=runs/7", "evaluation.episodes=0"]
    config = load([], overrides)
    assert (config.env.num_envs, config.rollout.num_steps) == (2, 50)
    assert (config.update.epochs, config.update.minibatch_size, config.update.max_grad_norm) == (2, 4, None)
    assert (config.policy.hidden_sizes, config.compile, config.run_dir) == ([32, 16], True, "runs/7")
    assert config.evaluation.episodes == 0


def test_free_sections_take_any_key() -> None:
    config = load(
        [], ["env.kwargs.length=5", "trainer.max_epochs=3", "trainer.precision=bf16-mixed", "callbacks=[a.B]"]
    )
    assert config.env.kwargs == {"length": 5} and config.callbacks == ["a.B"]
    assert config.trainer == {"max_epochs": 3, "precision": "bf16-mixed"}


def test_a_schedule_from_yaml_or_an_override(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "update:\n  clip_range: {kind: linear, start: 0.2, end: 0.1}\n")
    overrides = ["optimizer.learning_rate={kind: adaptive_kl, start: 1e-3, target_kl: 0.02}"]
    config = load([file], overrides)
    # .2 + .5 x (.1 - .2)
    assert config.update.schedules()["clip_range"](0.5) == pytest.approx(0.15)
    assert config.optimizer.schedule() == Schedule(kind="adaptive_kl", start=1e-3, target_kl=0.02)


def test_one_field_of_a_schedule_can_be_overridden(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "optimizer:\n  learning_rate: {kind: linear, start: 1e-3, end: 1e-4}\n")
    schedule = load([file], ["optimizer.learning_rate.start=5e-4"]).optimizer.schedule()
    assert (schedule(0.0), schedule(1.0)) == pytest.approx((5e-4, 1e-4))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("1e-4", Schedule(start=1e-4)),
        ("{kind: constant, start: 1e-4}", Schedule(start=1e-4)),
        ("{kind: adaptive_kl, start: 1e-4}", Schedule(kind="adaptive_kl", start=1e-4)),
    ],
    ids=["number", "constant", "adaptive"],
)
def test_a_later_schedule_of_another_kind_wins(override: str, expected: Schedule, tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.yaml", "optimizer:\n  learning_rate: {kind: linear, start: 1e-3, end: 1e-5, until: 0.5}\n"
    )
    assert load([file], [f"optimizer.learning_rate={override}"]).optimizer.schedule() == expected


def test_a_free_mapping_with_a_key_called_kind_is_merged_as_any_other(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "env: {id: tests.kit.envs:Bad, kwargs: {at: 3, kind: raises}}\n")
    assert load([file], ["env.kwargs.kind=nan_reward"]).env.kwargs == {"at": 3, "kind": "nan_reward"}


def test_a_setting_can_refer_to_another_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "update: {minibatch_size: '${rollout.num_steps}'}\n")
    assert load([file], ["rollout.num_steps=32"]).update.minibatch_size == 32


def test_optional_clip_ranges_are_coefficients_only_where_they_are_set() -> None:
    assert "value_clip_range" not in UpdateConfig().schedules()
    assert "clip_range_high" not in UpdateConfig().schedules()
    assert UpdateConfig(clip_range_high={"kind": "linear", "start": 0.3}).schedules()["clip_range_high"](1.0) == 0.0
    assert UpdateConfig(value_clip_range=0.3).schedules()["value_clip_range"](0.5) == 0.3


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("key", "yaml", "suggestion"),
    [
        ("total_env_step", "total_env_step: 1", "total_env_steps"),
        ("sede", "sede: 1", "seed"),
        # the right name without its section, or a wrong one within it
        ("gamma", "gamma: 1", "rollout.gamma"),
        ("rollout.gama", "rollout: {gama: 1}", "rollout.gamma"),
        ("update.clip_rnage", "update: {clip_rnage: 1}", "update.clip_range"),
        ("policy.hiden_sizes", "policy: {hiden_sizes: 1}", "policy.hidden_sizes"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(
    key: str, yaml: str, suggestion: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.yaml", yaml)
    for arguments in (([], [f"{key}=1"]), ([file], [])):
        with pytest.raises(ConfigError) as error:
            load(*arguments)
        assert message(error) == f"{key}: unknown setting; did you mean {suggestion}?"


def test_an_unknown_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^rolout: unknown setting; did you mean rollout\?"):
        load([], ["rolout.gamma=0.9"])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=abc", "seed"),
        ("seed=1.5", "seed"),
        ("seed=null", "seed"),
        ("seed=[1]", "seed"),
        ("total_env_steps=many", "total_env_steps"),
        ("compile=maybe", "compile"),
        ("env=5", "env"),
        ("env=null", "env"),
        ("env=[1,2]", "env"),
        ("env.num_envs=many", "env.num_envs"),
        ("env.kwargs=3", "env.kwargs"),
        ("rollout.gamma=high", "rollout.gamma"),
        ("update.epochs=2.5", "update.epochs"),
        ("update.target_kl=low", "update.target_kl"),
        ("update.clip_range=wide", "update.clip_range"),
        ("update.clip_range=null", "update.clip_range"),
        ("update.clip_range={kind: linear}", "update.clip_range"),
        ("update.clip_range={kind: adaptive_kl, start: 0.1}", "update.clip_range"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate"),
        ("optimizer.learning_rate={kind: cosine, start: 1e-3, stop: 0}", "optimizer.learning_rate.stop"),
        ("optimizer.betas=0.9", "optimizer.betas"),
        ("policy.hidden_sizes=64", "policy.hidden_sizes"),
        ("policy.hidden_sizes=[64,wide]", "policy.hidden_sizes"),
        ("normalize.observations=often", "normalize.observations"),
        ("callbacks=3", "callbacks"),
        ("seed=${nowhere}", "seed"),
    ],
)
def test_a_wrong_type_is_an_error_that_names_the_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load([], [override])
    assert message(error).startswith(key)


OUT_OF_RANGE = """
seed=-1
total_env_steps=0
rollouts_per_epoch=0
objective=natural_gradient
update.trust_region.max_kl=0
update.trust_region.cg_iterations=0
env.num_envs=0
env.backend=threads
rollout.num_steps=0
rollout.gamma=-0.01
rollout.gamma=1.01
rollout.gamma=.nan
rollout.gae_lambda=-0.01
rollout.gae_lambda=1.5
update.epochs=0
update.minibatch_size=0
update.clip_range=-0.2
update.clip_range=.nan
update.value_clip_range=-0.1
update.clip_range_high=-0.1
update.entropy_coefficient=-0.01
update.value_coefficient=-0.5
update.max_grad_norm=0
update.max_grad_norm=-1
update.max_grad_norm=.inf
update.max_grad_norm=.nan
update.target_kl=0
update.target_kl=-0.01
update.target_kl=.nan
optimizer.learning_rate=-1e-3
optimizer.learning_rate=.inf
optimizer.epsilon=0
optimizer.betas=[0.9]
optimizer.betas=[0.9,1.0]
optimizer.betas=[-0.1,0.9]
policy.activation=sine
policy.hidden_sizes=[64,0]
normalize.observation_clip=0
normalize.reward_clip=-1
normalize.epsilon=0
normalize.epsilon=.nan
evaluation.episodes=-1
evaluation.final_episodes=-1
evaluation.every_n_epochs=0
evaluation.num_envs=0
checkpoint.every_env_steps=0
"""


@pytest.mark.parametrize("override", OUT_OF_RANGE.split())
def test_a_value_out_of_range_is_an_error_that_names_the_key(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        load([], [override])
    assert message(error).startswith(override.partition("=")[0] + ":")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "0", 0),
        ("rollouts_per_epoch", "1", 1),
        ("rollout.gamma", "0", 0.0),
        ("rollout.gamma", "1", 1.0),
        ("rollout.gae_lambda", "0", 0.0),
        ("rollout.gae_lambda", "1", 1.0),
        ("update.epochs", "1", 1),
        ("update.clip_range", "0", 0),
        ("update.entropy_coefficient", "0", 0),
        ("update.target_kl", "1e-9", 1e-9),
        ("update.max_grad_norm", "1e-9", 1e-9),
        ("update.max_grad_norm", "null", None),
        ("optimizer.betas", "[0,0.5]", [0.0, 0.5]),
        ("policy.hidden_sizes", "[]", []),
        ("policy.hidden_sizes", "[1]", [1]),
        ("policy.log_std_init", "-3", -3.0),
        ("evaluation.episodes", "0", 0),
        ("evaluation.final_episodes", "0", 0),
    ],
)
def test_the_edge_of_a_range_is_legal(key: str, text: str, value: Any) -> None:
    config = to_container(load([], [f"{key}={text}"]))
    for name in key.split("."):
        config = config[name]
    assert config == value


@pytest.mark.parametrize(
    ("overrides", "nearest_size"),
    [
        # 10 x 3 = 30: 1 2 3 5 6 10 15 30
        (["rollout.num_steps=10", "env.num_envs=3", "update.minibatch_size=7"], 6),
        (["rollout.num_steps=10", "env.num_envs=3", "update.minibatch_size=14"], 15),
        (["rollout.num_steps=10", "env.num_envs=3", "update.minibatch_size=64"], 30),
        # 7 x 1 = 7: 1 7
        (["rollout.num_steps=7", "env.num_envs=1", "update.minibatch_size=2"], 1),
    ],
)
def test_an_indivisible_minibatch_names_the_nearest_size(overrides: list[str], nearest_size: int) -> None:
    with pytest.raises(ConfigError) as error:
        load([], overrides)
    assert message(error).startswith("update.minibatch_size: ")
    assert message(error).endswith(f"the nearest size that does is {nearest_size}")
    # and that size is accepted
    assert load([], [*overrides, f"update.minibatch_size={nearest_size}"]).update.minibatch_size == nearest_size


def test_a_single_transition_cannot_be_normalized() -> None:
    single = ["rollout.num_steps=1", "env.num_envs=1", "update.minibatch_size=1"]
    with pytest.raises(ConfigError) as error:
        load([], single)
    assert message(error).startswith("update.normalize_advantages: ")
    assert load([], [*single, "update.normalize_advantages=false"]).rollout.num_steps == 1
    with pytest.raises(ConfigError, match=r"^update\.normalize_advantages"):
        check_rollout_size(1, 1, UpdateConfig(minibatch_size=1))
    check_rollout_size(2, 1, UpdateConfig(minibatch_size=1))


@pytest.mark.parametrize("override", ["seed", "", "=1", "configs/missing", "--help"])
def test_an_override_without_a_key_or_value_is_explained(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        load([], [override])
    assert message(error).startswith(f"{override!r}: expected key=value")


@pytest.mark.parametrize("override", ["policy.hidden_sizes=[64", "update.clip_range={kind: linear"])
def test_an_override_that_is_no_yaml_is_explained(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        load([], [override])
    assert message(error).startswith(override.partition("=")[0] + ": ")


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    present = write(tmp_path / "cartpole.yaml", "seed: 1\n")
    write(tmp_path / "hopper.yaml", "seed: 1\n")
    with pytest.raises(ConfigError) as error:
        load([tmp_path / "cartpol.yaml"])
    assert message(error) == f"{tmp_path / 'cartpol.yaml'}: no such config file; did you mean {present}?"


def test_a_missing_file_without_neighbours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/a\.yaml: no such config file$"):
        load([tmp_path / "nowhere" / "a.yaml"])


@pytest.mark.parametrize(
    "text",
    ["a: [1", "seed: 1\n  env: 2", "- 1\n- 2\n", "\tseed: 1", "\x00\x01"],
    ids=["bracket", "indent", "list", "tab", "binary"],
)
def test_an_unreadable_file_is_named(text: str, tmp_path: Path) -> None:
    file = write(tmp_path / "broken.yaml", text)
    with pytest.raises(ConfigError) as error:
        load([file])
    assert message(error).startswith((f"{file}: ", f"{file}, line "))


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load([tmp_path])
    assert message(error) == f"{tmp_path}: Is a directory"


def test_a_key_that_is_no_string_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^7: unknown setting"):
        load([write(tmp_path / "a.yaml", "7: 8\n")])


# ---------------------------------------------------------------- writing


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load(
        [],
        [
            "env.kwargs={length: 5, name: 'a b', nested: {x: [1, 2.5, null]}}",
            "optimizer.learning_rate={kind: adaptive_kl, start: 3e-4, target_kl: 0.02}",
            "update.clip_range={kind: piecewise, points: [[0, 0.2], [0.5, 0.1], [1, 0]]}",
            "update.max_grad_norm=null",
            "optimizer.epsilon=1e-7",
            "policy.hidden_sizes=[]",
            "callbacks=[{class_path: a.B, init_args: {n: 1}}]",
            "run_dir='007'",
        ],
    )
    reloaded = load([write(tmp_path / "config.yaml", to_yaml(config))])
    assert reloaded == config and config != Config()
    assert reloaded.update.schedules() == config.update.schedules()
    assert reloaded.optimizer.schedule() == config.optimizer.schedule()


def test_yaml_round_trip_of_schedule_objects(tmp_path: Path) -> None:
    schedule = Schedule(kind="cosine", start=0.2, end=0.05, until=0.5)
    config = Config(update=UpdateConfig(clip_range=schedule), optimizer=OptimizerConfig(learning_rate=schedule))
    reloaded = load([write(tmp_path / "config.yaml", to_yaml(config))])
    assert reloaded.update.schedules()["clip_range"] == schedule and reloaded.optimizer.schedule() == schedule


def test_to_container_is_plain() -> None:
    schedule = Schedule(kind="linear", start=1.0)
    container = to_container({"a": (1, [schedule]), 2: EvaluationConfig(episodes=3)})
    assert container["a"] == [1, [{"kind": "linear", "start": 1.0, "end": 0.0, "until": 1.0}]]
    assert container["2"]["episodes"] == 3


# ---------------------------------------------------------------- sections in Python


def test_a_section_from_a_mapping_an_object_or_nothing() -> None:
    settings = RolloutConfig(num_steps=7)
    assert as_section(RolloutConfig, settings, "rollout") is settings
    assert as_section(RolloutConfig, None, "rollout") == RolloutConfig()
    assert as_section(RolloutConfig, {"num_steps": 7}, "rollout") == settings
    assert as_section(RolloutConfig, {}, "rollout") == RolloutConfig()


def test_a_section_takes_schedules_as_objects_or_mappings() -> None:
    schedule = Schedule(kind="linear", start=0.2, end=0.1)
    for value in (schedule, schedule.to_container()):
        assert as_section(UpdateConfig, {"clip_range": value}, "update").schedules()["clip_range"] == schedule


@pytest.mark.parametrize(
    ("section", "value", "start"),
    [
        (RolloutConfig, {"gama": 0.9}, "rollout.gama: unknown setting; did you mean rollout.gamma?"),
        (RolloutConfig, {"num_steps": "many"}, "rollout.num_steps: "),
        (RolloutConfig, {"num_steps": None}, "rollout.num_steps: "),
        (RolloutConfig, {"gamma": 1.5}, "rollout.gamma: must be at most 1"),
        (RolloutConfig, EnvConfig(), "rollout.id: unknown setting"),
    ],
    ids=["unknown", "type", "null", "range", "other section"],
)
def test_mistakes_in_a_section_name_the_key(section: type, value: Any, start: str) -> None:
    with pytest.raises(ConfigError) as error:
        as_section(section, value, "rollout")
    assert message(error).startswith(start)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EnvConfig(num_envs=0),
        lambda: RolloutConfig(gamma=2.0),
        lambda: UpdateConfig(clip_range=-1.0),
        lambda: UpdateConfig(clip_range=1.0),
        lambda: UpdateConfig(clip_range={"kind": "piecewise", "points": [[0, 0.2], [1, 1.5]]}),
        lambda: OptimizerConfig(learning_rate="fast"),
        lambda: NormalizeConfig(epsilon=0.0),
        lambda: Config(rollout=RolloutConfig(num_steps=3), env=EnvConfig(num_envs=5)),
    ],
)
def test_sections_made_in_python_are_checked_too(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_inputs_are_never_changed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "seed: 2\n")
    files, overrides = [file], ["env.kwargs.length=5", "rollout.gamma=0.5"]
    load(files, overrides)
    assert (files, overrides, file.read_text()) == ([file], ["env.kwargs.length=5", "rollout.gamma=0.5"], "seed: 2\n")

    section = {"clip_range": {"kind": "linear", "start": 0.2}, "epochs": 3}
    before = deepcopy(section)
    as_section(UpdateConfig, section, "update").schedules()
    assert section == before

    config = load([], ["update.clip_range={kind: linear, start: 0.2}", "env.kwargs.length=5"])
    before = deepcopy(config)
    to_container(config)["env"]["kwargs"]["length"] = 6
    to_yaml(config)
    config.update.schedules()
    assert config == before


def test_two_loads_share_no_state() -> None:
    load().env.kwargs["length"] = 5
    load().policy.hidden_sizes.append(7)
    assert load() == Config() and Config().env.kwargs == {}


def test_nearest_name() -> None:
    assert nearest("num_stpes", ["num_envs", "num_steps", "gamma"]) == "num_steps"
    # something is always suggested
    assert nearest("zzz", ["alpha"]) == "alpha"
