"""Settings whose effect depends on others, on the environment or on the kind of policy: what each needs."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium

from lightning_ppo.settings.algorithm import OBJECTIVES
from lightning_ppo.settings.loading import to_container
from lightning_ppo.settings.networks import CORES, DISTRIBUTIONS
from lightning_ppo.settings.reference import settings as all_settings
from lightning_ppo.support.spaces import space_leaves

Settings = Mapping[str, Any]


class Needed(NamedTuple):
    """A requirement of some settings."""

    keys: tuple[str, ...]
    """Settings, or sections that end in `.*`."""
    what: str
    """The requirement, as in the line that names a setting without effect."""
    missing: Callable[[Settings], bool]
    """Whether that is missing, given all settings and `actions`, the kinds of spaces that the actions are made of."""


REFUSED = {
    "env.wrappers": "copies stepped one by one (`sync`, `async`)",
    "env.timeout": "copies stepped one by one (`sync`, `async`)",
    "env.on_error": "`restart`: copies stepped one by one (`sync`, `async`)",
    "env.max_episode_steps": "a task whose time limit can be set; Atari games have `env.atari.max_frames`",
    "env.action_mask": "discrete actions; `method:NAME`: copies stepped one by one (`sync`, `async`)",
    "rollout.overlap": "a policy on the CPU, an environment that is named, an objective with a ratio",
    "rollout.processes": "a policy on the CPU, an environment that is named",
    "optimizer.init_args": "another `optimizer.class_path` than `adam`",
    "optimizer.groups": "parameters that its patterns match; `init_args`: another `optimizer.class_path` than `adam`",
    "optimizer.scheduler": "a number as `optimizer.learning_rate`",
    "optimizer.betas": "`optimizer.class_path=adam`",
    "optimizer.epsilon": "`optimizer.class_path=adam`",
    "update.epochs": "above 1: an objective with a ratio",
    "update.sequence_length": "memory",
    "update.micro_batch_size": "another objective than `trpo`",
    "policy.core": "no `policy.network`",
    "policy.encoder": "no `policy.network`",
    "policy.critic_observation_keys": "a Dict observation, a critic of its own",
}
"""Settings that are refused where what they need is missing."""

TOLD = {
    "env.stagger": "a time limit, and a way to truncate single copies ([which](environments.md))",
    "env.atari.noop_max": "0: another backend than `envpool`, which makes it 1",
    "compile": "`true`: a C++ compiler, a loss that can be traced; on a GPU Triton, and a policy that can be recorded",
}
"""Settings for which the code that finds that they have no effect says so, once."""


def _named(settings: Settings, *but: str) -> bool:
    """Return whether the objective is a built-in one other than those named."""
    return settings["objective"] in OBJECTIVES and settings["objective"] not in but


def _gaussian(settings: Settings) -> bool:
    """Return whether the distribution is, or may be, a Gaussian one."""
    distribution = settings["policy.distribution"]
    return distribution not in DISTRIBUTIONS or ("Box" in settings["actions"] and distribution != "beta")


def _independent(settings: Settings) -> bool:
    """Return whether the distribution is, or may be, a Gaussian one with noise in each action by itself."""
    return settings["policy.distribution"] != "gsde" and _gaussian(settings)


NEEDED = (
    Needed(("env.max_restarts",), "env.on_error=restart", lambda s: s["env.on_error"] != "restart"),
    Needed(("env.atari.*",), "an Atari game (env.id=ALE/...)", lambda s: not s["env.id"].startswith("ALE/")),
    Needed(
        ("update.clip_range", "update.clip_range_high"),
        "objective=clip; with others only the metric update/clip_fraction uses it",
        lambda s: _named(s, "clip"),
    ),
    Needed(
        ("update.kl_coefficient",),
        "objective=kl_penalty or adaptive_kl",
        lambda s: _named(s, "kl_penalty", "adaptive_kl"),
    ),
    Needed(("update.kl_target",), "objective=adaptive_kl", lambda s: _named(s, "adaptive_kl")),
    Needed(("update.trust_region.*",), "objective=trpo", lambda s: _named(s, "trpo")),
    Needed(
        ("update.std_decay",),
        "Box actions of a Gaussian distribution, and another objective than trpo",
        lambda s: not _gaussian(s) or s["objective"] == "trpo",
    ),
    Needed(
        ("policy.distribution",),
        "Box actions",
        lambda s: "Box" not in s["actions"] and s["policy.distribution"] in DISTRIBUTIONS,
    ),
    Needed(("policy.log_std_init",), "Box actions of a Gaussian distribution", lambda s: not _gaussian(s)),
    Needed(
        ("update.noise_color",),
        "Box actions of a Gaussian distribution other than gsde, which has a correlation of its own",
        lambda s: not _independent(s),
    ),
    Needed(
        ("policy.log_std_bounds",),
        "Box actions of a Gaussian distribution other than gsde, whose deviations depend on the features",
        lambda s: not _independent(s),
    ),
    Needed(("policy.core_size",), "policy.core=lstm, gru or transformer", lambda s: s["policy.core"] not in CORES),
    Needed(
        ("policy.core_layers", "policy.core_heads", "policy.core_memory"),
        "policy.core=transformer",
        lambda s: s["policy.core"] != "transformer",
    ),
    Needed(
        ("policy.hidden_sizes", "policy.activation", "policy.layer_norm", "policy.shared_trunk", "policy.dropout"),
        "the built-in network (policy.network=null)",
        lambda s: s["policy.network"] is not None,
    ),
    Needed(("normalize.observation_clip",), "normalize.observations=true", lambda s: not s["normalize.observations"]),
    Needed(("normalize.reward_clip",), "normalize.rewards=true", lambda s: not s["normalize.rewards"]),
    Needed(
        ("normalize.epsilon",),
        "normalize.observations=true or normalize.rewards=true",
        lambda s: not (s["normalize.observations"] or s["normalize.rewards"]),
    ),
    Needed(
        ("evaluation.*",),
        "an environment that is named, or evaluation_env",
        lambda s: not s["env.id"] and not s["evaluation_env"],
    ),
)
"""Settings without effect if a requirement is missing; one line says so if they differ from their default."""

EVERYWHERE = (
    *(
        "seed",
        "total_env_steps",
        "run_dir",
        "resume",
        "debug",
        "plain",
        "objective",
        "loss_terms",
        "rollouts_per_epoch",
    ),
    *("env.id", "env.num_envs", "env.backend", "env.kwargs", "env.scores", "env.large_state", "env.log_info"),
    *("rollout.num_steps", "rollout.gamma", "rollout.gae_lambda"),
    *("update.minibatch_size", "update.value_clip_range", "update.entropy_coefficient", "update.value_coefficient"),
    *("update.max_grad_norm", "update.target_kl", "update.recompute_advantages", "update.normalize_advantages"),
    *("optimizer.class_path", "optimizer.learning_rate", "policy.network"),
    *("normalize.observations", "normalize.rewards", "checkpoint.every_env_steps", "checkpoint.keep"),
    *("checkpoint.save_best", "trainer", "callbacks", "loggers"),
)
"""Settings that mean the same on every backend and device, in every process and for every kind of policy."""


def covers(pattern: str, key: str) -> bool:
    """Return whether a pattern names a setting or its section."""
    return key == pattern or (pattern.endswith(".*") and key.startswith(pattern[:-1]))


def without_effect(sections: Settings, action_space: gymnasium.Space, evaluation_env: bool) -> Iterator[str]:
    """Yield a line for each setting that differs from its default but does nothing.

    Args:
        sections: Nested settings; those that are missing have their defaults.
        action_space: Of one environment.
        evaluation_env: Whether an environment to evaluate on was given.
    """
    given, defaults = to_container(sections), {setting.key: setting.default for setting in all_settings()}
    settings = {key: _at(given, key, default) for key, default in defaults.items()}
    kinds = {type(leaf).__name__ for leaf in space_leaves(action_space).values()}
    facts = settings | {"actions": kinds, "evaluation_env": evaluation_env}
    for needed in NEEDED:
        if needed.missing(facts):
            for key, default in defaults.items():
                if any(covers(pattern, key) for pattern in needed.keys) and settings[key] != default:
                    yield f"{key}={settings[key]} has no effect: it needs {needed.what}"


def _at(tree: Any, key: str, default: Any) -> Any:
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return default
        tree = tree[name]
    return tree
