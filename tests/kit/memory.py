"""Recurrent agents, and their cores step by step and in sequences."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.policy.recurrence import run_core
from lightning_ppo.policy.transformer import TransformerCore
from lightning_ppo.settings.networks import CORES, PolicyConfig
from tests.kit.training import Recording

KINDS = [*CORES]
TRANSFORMER = {"core": "transformer", "core_size": 8, "core_layers": 2, "core_heads": 2, "core_memory": 5}


def make_core(kind: str, num_inputs: int, size: int = 8):
    """Return a core whose biases are not zero: a state of zeros does not stay one."""
    core = CORES.load(kind).of_settings(num_inputs, PolicyConfig(**TRANSFORMER | {"core": kind, "core_size": size}))
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.5)
    return core


def states_of(core: nn.Module, count: int, scale: float = 1.0) -> Tensor:
    """Return random states (count, H); a transformer's memory is full."""
    states = scale * torch.randn(count, core.state_size)
    if isinstance(core, TransformerCore):
        states[:, -1] = core.memory
    return states


def step_by_step(core: nn.Module, x: Tensor, states: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs (T, N, F) and states (T, N, H) after each step of x (T, N, I)."""
    outputs, after = [], []
    for seen, begun in zip(x, starts, strict=True):
        output, states = run_core(core, seen, states, begun)
        outputs.append(output)
        after.append(states)
    return torch.stack(outputs), torch.stack(after)


def whole(core: nn.Module, x: Tensor, states: Tensor, starts: Tensor) -> Tensor:
    """Return the outputs (T, N, F) of x (T, N, I) as N sequences of T steps."""
    outputs, _ = run_core(core, x.transpose(0, 1).flatten(0, 1), states, starts.t().flatten())
    return outputs.unflatten(0, (x.shape[1], -1)).transpose(0, 1)


def make_pair(env: str, epochs: int = 1, model: type[PPO] = Recording, policy=None, update=None, **kwargs):
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule(env=env, num_envs=4, num_steps=16, rollouts_per_epoch=1, backend="sync")
    policy = {"core": "lstm", "hidden_sizes": [8], "core_size": 8} | (policy or {})
    update = {"epochs": epochs, "minibatch_size": 32, "sequence_length": 8} | (update or {})
    return model(data.observation_space, data.action_space, policy=policy, update=update, **kwargs), data


class Latch(nn.Module):
    """Keeps the largest input of the episode: a core of a user's own."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.num_features, self.state_size = num_inputs, num_inputs

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.cat((states.unsqueeze(0), x)).cummax(0).values[1:]
        return kept, kept[-1]
