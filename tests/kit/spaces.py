"""Every kind of observation and action, an environment of any two, and agents that act on them."""

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from lightning_ppo.collection.collector import Collector
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.rollout.shapes import Minibatch, Rollout
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.tree import tree_leaves, tree_map

VECTOR = spaces.Box(-3.0, 5.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
TILES = spaces.Box(0, 255, (7, 7, 3), np.uint8)
GRID = spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, 1], [-1, 5]])

OBSERVATIONS: dict[str, Space] = {
    "vector": VECTOR,
    "scalar float64": spaces.Box(-np.inf, np.inf, (), np.float64),
    "image": IMAGE,
    "image channels first": spaces.Box(0, 255, (4, 36, 40), np.uint8),
    "small image": TILES,
    "discrete": spaces.Discrete(4, start=-1),
    "multi-discrete": GRID,
    "multi-binary": spaces.MultiBinary((2, 2)),
    "dict": spaces.Dict({"camera": IMAGE, "joints": VECTOR, "mode": spaces.Discrete(3, start=2)}),
    "tuple": spaces.Tuple((spaces.MultiDiscrete([2, 3]), VECTOR)),
    "nested": spaces.Dict(
        {"a": spaces.Tuple((VECTOR, spaces.Dict({"grid": GRID, "on": spaces.MultiBinary(2)}))), "tiles": TILES}
    ),
}

ARM = spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 10.0]), dtype=np.float32)
MIXED = spaces.Dict(
    [
        ("move", ARM),
        ("hand", spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiBinary(2)))),
        ("keys", spaces.MultiDiscrete([2, 3], start=[1, -1])),
        ("look", spaces.Box(-1.0, 1.0, (1, 2), np.float64)),
    ]
)
BOXES = ("gaussian", "state_gaussian", "tanh_gaussian", "beta", "gsde")
ACTIONS: dict[str, tuple[Space, str]] = {
    "discrete": (spaces.Discrete(4, start=3), "gaussian"),
    "multi-discrete": (GRID, "gaussian"),
    "multi-binary": (spaces.MultiBinary((2, 2)), "gaussian"),
    **{name: (ARM, name) for name in BOXES},
    "unbounded": (spaces.Box(-np.inf, np.inf, (2,), np.float32), "gsde"),
    "dict": (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Discrete(2, start=1)}), "gaussian"),
    "tuple": (spaces.Tuple((spaces.MultiDiscrete([2, 3]), ARM)), "state_gaussian"),
    **{f"mixed {name}": (MIXED, name) for name in BOXES},
}


def parts_of(space: Space) -> Iterator[Space]:
    """The parts of a space that have none."""
    if isinstance(space, spaces.Dict):
        for child in space.spaces.values():
            yield from parts_of(child)
    elif isinstance(space, spaces.Tuple):
        for child in space.spaces:
            yield from parts_of(child)
    else:
        yield space


def choices_of(space: Space) -> list[int]:
    """Choices of each discrete number of an action."""
    found: list[int] = []
    for part in parts_of(space):
        if isinstance(part, spaces.Discrete):
            found.append(int(part.n))
        elif isinstance(part, spaces.MultiDiscrete):
            found += part.nvec.reshape(-1).tolist()
        elif isinstance(part, spaces.MultiBinary):
            found += [2] * math.prod(part.shape)
    return found


def random_masks(sizes: list[int], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Masks (rows, M) with at least one legal choice each."""
    pieces = []
    for size in sizes:
        legal = rng.random((rows, size)) < 0.5
        legal[np.arange(rows), rng.integers(size, size=rows)] = True
        pieces.append(legal)
    return np.concatenate(pieces, 1) if pieces else np.zeros((rows, 0), bool)


class Anything(gymnasium.Env):
    """Shows random elements of a space, takes actions of another, and refuses those that are illegal."""

    def __init__(self, observation_space: Space, action_space: Space, masked: bool = False, length: int = 3) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.masked, self.length, self.t = masked, length, 0

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        if not self.masked:
            return self.observation_space.sample(), {}
        self.mask = random_masks(choices_of(self.action_space), 1, self.np_random)[0]
        return self.observation_space.sample(), {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self._shown()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if self.masked:
            assert self.mask[chosen(self.action_space, action)].all(), f"{action!r} is not legal"
        self.t += 1
        observation, info = self._shown()
        return observation, float(self.t), self.t >= self.length, False, info


def chosen(space: Space, action: Any) -> list[int]:
    """Positions in a mask of what an action chose."""
    values: list[int] = []

    def visit(part: Space, value: Any) -> None:
        if isinstance(part, spaces.Dict | spaces.Tuple):
            for key, child in part.spaces.items() if isinstance(part, spaces.Dict) else enumerate(part.spaces):
                visit(child, value[key])
        elif not isinstance(part, spaces.Box):
            values.extend(np.reshape(np.asarray(value, np.int64) - getattr(part, "start", 0), -1).tolist())

    visit(space, action)
    offsets = np.concatenate(([0], np.cumsum(choices_of(space))))
    return [int(offset + value) for offset, value in zip(offsets, values, strict=False)]


def agent_of(
    observation: Space, action: Space, name: str, gain: float = 300.0, seen: Any = None, **settings: Any
) -> ActorCritic:
    """An agent whose normalisers have seen data (B, ...) and whose decisions are sharp."""
    torch.manual_seed(0)
    agent = ActorCritic(observation, action, PolicyConfig([8], distribution=name, **settings))
    with torch.no_grad():
        agent.network.actor_output.weight.mul_(gain)
    seen = tree_map(lambda x: x.unsqueeze(1), observed(observation, 20) if seen is None else seen)
    agent.inputs.update(seen, torch.ones(len(tree_leaves(seen)[0]), 1, dtype=torch.bool), lambda x: x)
    return agent


def observed(space: Space, count: int) -> Any:
    """Random observations (count, ...) as tensors."""
    space.seed(1)
    batch = batch_space(space, count)
    batch.seed(1)
    return tree_map(torch.as_tensor, batch.sample())


def collected(agent: ActorCritic, observation: Space, action: Space, masked: bool = False, steps: int = 5) -> Rollout:
    env = SyncVectorEnv([lambda: Anything(observation, action, masked)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    return Collector(env, agent, steps, torch.Generator().manual_seed(0), [1, 2, 3]).collect()


def flattened(rollout: Rollout) -> Minibatch:
    rollout.advantages = rollout.returns = torch.zeros_like(rollout.rewards)
    return rollout.flatten()


CORES = (None, "lstm", "gru", "transformer")
KINDS = ("discrete", "multi-discrete", "multi-binary", "dict", "tuple")
"""Kinds of action without a choice of distribution, or with one in the table above; `tuple` holds a Box."""


def pairs() -> Iterator[tuple[str, str, str | None, bool]]:
    """Every kind of observation with every kind of action, core, and with masks where there are choices.

    The distributions of a Box take turns: each meets every core, and `test_samples_are_distributed_as_claimed` all.
    """
    for number, observation in enumerate(OBSERVATIONS):
        box = [*BOXES, "unbounded"][number % 6]
        for action in (*KINDS, box, f"mixed {BOXES[number % 5]}"):
            for core in CORES:
                yield observation, action, core, False
                if choices_of(ACTIONS[action][0]):
                    yield observation, action, core, True
