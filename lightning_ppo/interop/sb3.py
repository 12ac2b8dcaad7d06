"""Import agents of Stable-Baselines3, without it and without unpickling anything but tensors."""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_ppo.collection.datamodule import RolloutDataModule
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.distributions import GaussianHead
from lightning_ppo.policy.images import NatureCNN
from lightning_ppo.policy.networks import Trunk
from lightning_ppo.run.checkpointing import RecordConfig
from lightning_ppo.settings.loading import load_over, to_container
from lightning_ppo.settings.networks import ACTIVATIONS
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.checkpoint_files import AtomicCheckpointIO
from lightning_ppo.support.errors import CheckpointError, one_line
from lightning_ppo.update.ppo import PPO

NUMBERS = {
    "n_envs": ("env", "num_envs"),
    "n_steps": ("rollout", "num_steps"),
    "gamma": ("rollout", "gamma"),
    "gae_lambda": ("rollout", "gae_lambda"),
    "n_epochs": ("update", "epochs"),
    "batch_size": ("update", "minibatch_size"),
    "ent_coef": ("update", "entropy_coefficient"),
    "max_grad_norm": ("update", "max_grad_norm"),
    "normalize_advantage": ("update", "normalize_advantages"),
    "target_kl": ("update", "target_kl"),
}
"""Parameters of SB3's PPO that have a setting of equal meaning, or near enough, here."""

RATES = {
    "clip_range": ("update", "clip_range"),
    "clip_range_vf": ("update", "value_clip_range"),
    "learning_rate": ("optimizer", "learning_rate"),
}
"""Those that may be schedules, which SB3 stores as code unless they are constant."""

CNN_LAYERS = ("cnn.0", "cnn.2", "cnn.4", "linear.0")
"""Of SB3's NatureCNN, in the order of ours."""

STATISTICS = ("obs_mean", "obs_var", "obs_count", "ret_mean", "ret_var", "ret_count")
LIMITS = {"clip_obs": "observation_clip", "clip_reward": "reward_clip", "epsilon": "epsilon"}
"""Optional numbers in a file of VecNormalize statistics, and the settings that they become."""


class Sb3Agent(NamedTuple):
    """The contents of a zip file."""

    parameters: dict[str, Tensor]
    """State dict of the policy, by SB3's names."""
    data: dict[str, Any]
    """The JSON part; pickled parts of it are left as they are."""


def read_zip(path: str | os.PathLike[str]) -> Sb3Agent:
    """Read an agent that SB3's PPO has saved.

    Raises:
        CheckpointError: If the file is missing, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as file:
            data = json.loads(file.read("data"))
            parameters = torch.load(BytesIO(file.read("policy.pth")), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = one_line(error, 120)
        raise CheckpointError(f"{path}: not an agent saved by Stable-Baselines3 ({reason})") from None
    if "n_epochs" not in data or "action_net.weight" not in parameters:
        raise CheckpointError(f"{path}: saved by another algorithm than PPO of Stable-Baselines3")
    return Sb3Agent(parameters, data)


def to_settings(agent: Sb3Agent, env_id: str) -> tuple[Config, list[str]]:
    """Return settings that continue training as SB3 would, and notes on what could not be imported.

    Raises:
        CheckpointError: If the agent's networks have no counterpart here.
    """
    _require_known(agent)
    data, notes = agent.data, []
    actor, critic = _layers(agent, "policy_net"), _layers(agent, "value_net")
    sizes = [weight.shape[0] for weight, _ in actor]
    if sizes != [weight.shape[0] for weight, _ in critic]:
        raise CheckpointError("its actor and critic have hidden layers of different sizes, which is not supported")
    if data.get("use_sde"):
        raise CheckpointError("it explores by gSDE (use_sde=True), which is not supported")
    settings: dict[str, Any] = {section: {} for section in ("env", "rollout", "update")}
    for name, (section, key) in NUMBERS.items():
        if name in data:
            settings[section][key] = data[name]
    settings["env"]["id"] = env_id
    settings["update"] |= {"std_decay": 0.0, "noise_color": 0.0}  # theirs is learnt alone, and white
    # theirs weighs the squared error, ours half of it
    settings["update"]["value_coefficient"] = 2.0 * float(data.get("vf_coef", 0.5))
    settings["optimizer"] = {}
    for name, (section, key) in RATES.items():
        value = _constant(data.get(name))
        if value is not None:
            settings[section][key] = value
        elif name != "clip_range_vf" or data.get(name) is not None:  # null turns it off, as here
            notes.append(f"{name} is a schedule, which is stored as code; set it anew, the default is taken")
    actor_cnn, critic_cnn = _cnn(agent, "policy_net"), _cnn(agent, "value_net")
    pairs = [
        (one, other) for layers in zip(actor_cnn, critic_cnn, strict=True) for one, other in zip(*layers, strict=True)
    ]
    shared = bool(pairs) and all(torch.equal(*pair) for pair in pairs)
    if shared and sizes:
        notes.append("actor and critic shared one image network; here each has a copy, and they are trained apart")
    settings["policy"] = {"hidden_sizes": sizes, "activation": _activation(data), "shared_trunk": shared and not sizes}
    settings["policy"]["layer_norm"] = False  # whatever our defaults
    settings["normalize"] = {"observations": False, "rewards": False}
    return load_over(settings), notes


def _constant(value: Any) -> float | None:
    """Return a number, or the number in the text of a constant schedule; None for other schedules."""
    if isinstance(value, int | float):
        return float(value)
    text = value.get("value_schedule", "") if isinstance(value, Mapping) else ""
    match = re.fullmatch(r"ConstantSchedule\(val=([-+.\de]+)\)", str(text))
    return float(match.group(1)) if match else None


def _activation(data: Mapping[str, Any]) -> str:
    named = str((data.get("policy_kwargs") or {}).get("activation_fn", "Tanh"))
    name = re.sub(r"\W", " ", named).split()[-1].lower()
    if name not in ACTIVATIONS:
        raise CheckpointError(f"its activation {named} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return name


def _layers(agent: Sb3Agent, network: str) -> list[tuple[Tensor, Tensor]]:
    """Return weights and biases of a network's hidden layers."""
    prefix = f"mlp_extractor.{network}."
    weights = [n for n in agent.parameters if n.startswith(prefix) and n.endswith(".weight")]
    weights.sort(key=lambda name: int(name.split(".")[2]))
    return [(agent.parameters[n], agent.parameters[n.replace(".weight", ".bias")]) for n in weights]


def _cnn(agent: Sb3Agent, network: str) -> list[tuple[Tensor, Tensor]]:
    """Return weights and biases of the layers that turn images into features; none for an agent that sees vectors."""
    prefix = "pi_features_extractor." if network == "policy_net" else "vf_features_extractor."
    names = [f"{prefix}{layer}" for layer in CNN_LAYERS]
    if f"{names[0]}.weight" not in agent.parameters:
        return []
    features = agent.parameters[f"{names[-1]}.weight"].shape[0]
    if features != NatureCNN.num_features:
        raise CheckpointError(f"its features_dim={features} is not supported; supported is {NatureCNN.num_features}")
    if (agent.data.get("policy_kwargs") or {}).get("normalize_images") in (False, "False"):
        raise CheckpointError("it takes images as they are (normalize_images=False), which is not supported")
    return [(agent.parameters[f"{name}.weight"], agent.parameters[f"{name}.bias"]) for name in names]


def _require_known(agent: Sb3Agent) -> None:
    extractors = ("features_extractor.", "pi_features_extractor.", "vf_features_extractor.")
    cnn = tuple(f"{extractor}{layer}." for extractor in extractors for layer in CNN_LAYERS)
    known = ("mlp_extractor.policy_net.", "mlp_extractor.value_net.", "action_net.", "value_net.", "log_std", *cnn)
    unknown = [name for name in agent.parameters if not name.startswith(known)]
    if unknown:
        raise CheckpointError(
            f"it has the parameters {unknown[0]}, but only agents of MlpPolicy and CnnPolicy are supported"
        )


def read_statistics(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the statistics of a VecNormalize from an .npz file.

    Raises:
        CheckpointError: If it is none, or a pickle.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except Exception as error:
        reason = one_line(error, 120)
        raise CheckpointError(
            f"{path}: no .npz file ({reason}); what VecNormalize.save writes is a pickle, which could run anything, "
            "so save its numbers with numpy.savez instead, see docs/migration.md"
        ) from None
    missing = [name for name in STATISTICS if name not in content]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} missing, see docs/migration.md")
    return content


@torch.no_grad()
def transfer(agent: Sb3Agent, policy: ActorCritic) -> None:
    """Put an agent's weights into a policy, so that it takes the same actions and gives the same values.

    SB3 acts in the units of the environment, here a bounded dimension spans [-1, 1]: the last layer and the standard
    deviation are rescaled.

    Raises:
        CheckpointError: If the shapes differ, as those of another environment do.
    """
    network = policy.network
    for name, trunk in (("policy_net", network.actor_trunk), ("value_net", network.critic_trunk)):
        theirs = _cnn(agent, name) + _layers(agent, name)
        ours = _trunk_layers(trunk)
        if len(ours) != len(theirs):
            sees = "images" if _cnn(agent, name) else "vectors"
            raise CheckpointError(f"it sees {sees}, which the environment does not show, or not alone")
        for layer, (weight, bias) in zip(ours, theirs, strict=True):
            _copy(layer, weight, bias)
    scale, shift = torch.ones(()), torch.zeros(())
    gaussian = isinstance(policy.head, GaussianHead)
    if gaussian != ("log_std" in agent.parameters):
        raise CheckpointError("its actions are of another kind than those of the environment")
    if isinstance(policy.head, GaussianHead):
        scale, shift = policy.head.half_range, policy.head.center
        policy.head.log_std.copy_(agent.parameters["log_std"] - scale.log())
    weight, bias = agent.parameters["action_net.weight"], agent.parameters["action_net.bias"]
    _copy(network.actor_output, weight / scale.unsqueeze(-1), (bias - shift) / scale)
    _copy(network.critic_output, agent.parameters["value_net.weight"], agent.parameters["value_net.bias"])


def _trunk_layers(trunk: Trunk) -> list[nn.Linear | nn.Conv2d]:
    """Return the layers that have weights, from input to features."""
    modules = [*trunk.encoder.modules(), *trunk.mlp]
    return [module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)]


def _copy(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    if layer.weight.shape != weight.shape:
        raise CheckpointError(
            f"a layer has {tuple(weight.shape)} weights where the environment needs {tuple(layer.weight.shape)}; "
            "was it trained in another environment?"
        )
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.copy_(bias)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    env_id: str,
    statistics: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Write a checkpoint that acts like an agent of SB3, and from which training can continue.

    Counters, random states and the optimizer start anew.

    Args:
        source: Zip file that SB3's `PPO.save` has written.
        target: The checkpoint.
        env_id: The environment it was trained in, which the zip file does not name.
        statistics: .npz file with the statistics of the VecNormalize that it was trained with, if any.

    Returns:
        Notes on what could not be taken over.

    Raises:
        CheckpointError: If a file cannot be used, or the agent has no counterpart here.
        EnvironmentFault: If the environment cannot be built.
    """
    agent = read_zip(source)
    config, notes = to_settings(agent, env_id)
    found = None if statistics is None else read_statistics(statistics)
    if found is not None:
        limits = {key: float(found[name]) for name, key in LIMITS.items() if name in found}
        config = replace(config, normalize=replace(config.normalize, observations=True, rewards=True, **limits))
    data = RolloutDataModule(
        config.env,
        rollout=config.rollout,
        rollouts_per_epoch=config.rollouts_per_epoch,
        evaluation=config.evaluation,
        seed=config.seed,
    )
    settings = {name: getattr(config, name) for name in ("update", "optimizer", "policy", "normalize")}
    model = PPO(data.observation_space, data.action_space, total_env_steps=config.total_env_steps, **settings)
    transfer(agent, model.policy)
    if found is not None:
        _set_statistics(model.policy, found)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=0,
        callbacks=[RecordConfig(to_container(replace(config, resume=None, run_dir=None)))],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)  # no epoch: it only sets up what a checkpoint holds
    trainer.save_checkpoint(Path(target))
    return notes


def _set_statistics(policy: ActorCritic, found: Mapping[str, Any]) -> None:
    normalizer, scaler = policy.inputs.normalizers.get(""), policy.reward_scaler
    if normalizer is None or scaler is None:
        raise CheckpointError("the statistics are of one vector of observations, which this environment does not show")
    names = {"mean": "mean", "variance": "var", "count": "count"}
    for moments, kind in ((normalizer, "obs"), (scaler, "ret")):
        state = {ours: torch.as_tensor(found[f"{kind}_{theirs}"]) for ours, theirs in names.items()}
        shapes = tuple(state["mean"].shape), tuple(moments.mean.shape)
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{kind}_mean has the shape {shapes[0]}, the environment needs {shapes[1]}")
        moments.load_state_dict(state)
