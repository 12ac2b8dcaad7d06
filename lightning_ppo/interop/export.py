"""Export an agent: one file that acts, with normalisers, action head and recurrent state inside.

The exported function is deterministic. Its inputs are the observations, one tensor per part of the space, with names
such as `observations` or `observations.camera`; then, with masks, `action_masks`; then, for a policy with memory,
`states` and `starts`. Its outputs are `actions`, named likewise, as the environment takes them, and `next_states`.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.class_path import Registry
from lightning_ppo.support.errors import UserError, described
from lightning_ppo.support.spaces import space_leaves, space_structure
from lightning_ppo.support.tree import tree_leaves, tree_map

_EXPORTERS = "lightning_ppo.interop.exporters"
EXPORTERS = Registry(
    "format",
    f"{_EXPORTERS}.Exporter",
    {"onnx": f"{_EXPORTERS}.OnnxExporter", "torch": f"{_EXPORTERS}.TorchExporter"},
)

Function = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Takes inputs and returns outputs, both by name, with B rows each."""


class Deployed(nn.Module):
    """The deterministic policy as a function of plain tensors.

    Args:
        policy: The agent.
        observation_space: Of one environment.
        action_space: Of one environment.
        action_masks: Whether masks of legal choices are an input.

    Raises:
        UserError: If masks are asked for and its actions have no choices.
    """

    def __init__(
        self,
        policy: ActorCritic,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        action_masks: bool = False,
    ) -> None:
        super().__init__()
        if action_masks and not policy.head.num_choices:
            raise UserError(f"actions in {action_space} have no choices that a mask could forbid")
        self.policy = policy.eval()
        if policy.actor_keys is not None and not policy.state_size:  # what the critic alone sees is not there to be fed
            assert isinstance(observation_space, spaces.Dict)
            observation_space = spaces.Dict([(key, observation_space[key]) for key in policy.actor_keys])
        self.spaces = {_name("observations", path): leaf for path, leaf in space_leaves(observation_space).items()}
        self.structure = space_structure(observation_space)
        self.masked = action_masks
        self.inputs = [*self.spaces, *(["action_masks"] if action_masks else [])]
        self.inputs += ["states", "starts"] if policy.state_size else []
        self.outputs = [_name("actions", path) for path in space_leaves(action_space)]
        self.outputs += ["next_states"] if policy.state_size else []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs (B, ...) of the inputs (B, ...), in the order of `outputs` and `inputs`."""
        named = dict(zip(self.inputs, tensors, strict=True))
        leaves = [named[name] for name in self.spaces]
        observations = tree_map(leaves.__getitem__, self.structure)
        actions, states = self.policy.step(
            observations, named.get("states"), named.get("starts"), action_masks=named.get("action_masks")
        )
        found = tuple(tree_leaves(actions))
        return found if states is None else (*found, states)

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of inputs, both by name."""
        found = self(*(tensors[name] for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))

    def sample(self, rows: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return random inputs of some rows; recurrent states are those before the first step."""
        found: dict[str, Tensor] = {}
        for name, space in self.spaces.items():
            space.seed(int(rng.integers(2**31)))
            found[name] = torch.from_numpy(np.stack([np.asarray(space.sample()) for _ in range(rows)]))
        if self.masked:
            found["action_masks"] = torch.ones(rows, self.policy.head.num_choices, dtype=torch.bool)
        states = self.policy.initial_states(rows)
        if states is not None:
            found |= {"states": states, "starts": torch.from_numpy(rng.random(rows) < 0.1)}
        return found


def _name(kind: str, path: str) -> str:
    return f"{kind}.{path}" if path else kind


def export(deployed: Deployed, path: str | os.PathLike[str], kind: Any) -> Function:
    """Write a policy to a file and return the function that was read back from it.

    Args:
        deployed: The policy.
        path: The file.
        kind: `onnx`, to be run by ONNX Runtime, `torch`, to be run by torch alone, or an `Exporter` as class path.

    Raises:
        ConfigError: If there is no such format.
        UserError: If a package is missing, or a network of the user's own cannot be exported.
    """
    exporter = EXPORTERS.instantiate(kind)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return exporter.write(deployed, path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the policy cannot be exported: {described(error, 200)}") from error


@torch.no_grad()
def greatest_difference(deployed: Deployed, function: Function, steps: int = 100, rows: int = 10) -> float:
    """Return how far an exported function's outputs are from the policy's on random observations.

    Recurrent states are carried on by both for themselves, with episodes that start in between.

    Args:
        deployed: The policy.
        function: What `export` has returned.
        steps: How often to act.
        rows: Observations per step.
    """
    rng, greatest = np.random.default_rng(1), 0.0
    ours = theirs = None
    for _ in range(steps):
        inputs = deployed.sample(rows, rng)
        ours = deployed.named(inputs if ours is None else _carry(inputs, ours))
        theirs = function(inputs if theirs is None else _carry(inputs, theirs))
        for name, value in ours.items():
            greatest = max(greatest, float((value.double() - theirs[name].double()).abs().max()))
    return greatest


def _carry(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    states = {"states": outputs["next_states"]} if "next_states" in outputs else {}
    return {**inputs, **states}
