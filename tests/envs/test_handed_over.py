"""What is handed to an environment is not what is stored: it may write into it."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lightning_ppo import RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs.simulators import TensorVectorEnv
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.tree import tree_leaves, tree_map
from tests.kit.envs import Count, make_vector_env

SPACES = {
    "Discrete": spaces.Discrete(3),
    "Discrete from 0 on, masked": spaces.Discrete(3),
    "Discrete from 5 on": spaces.Discrete(3, start=5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(2),
    "Box": spaces.Box(-1.0, 1.0, (2,)),
    "Box, unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "Dict": spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1.0, 1.0, (1,))}),
}


class Scribbler(VectorEnv):
    """Episodes of 3 steps; keeps a copy of its actions, and then writes into everything it was given or returned."""

    single_observation_space = spaces.Box(-1e3, 1e3, (2,), np.float32)

    def __init__(self, action_space, masked=False, scribbles=True, mode=AutoresetMode.DISABLED, num_envs=4):
        self.metadata = {"autoreset_mode": mode}
        self.num_envs, self.masked, self.scribbles = num_envs, masked, scribbles
        self.single_action_space = action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.observations = np.zeros((num_envs, 2), np.float32)
        self.masks = np.ones((num_envs, 3), np.int8)
        self.taken = []

    def _infos(self):
        self.masks[:] = 1
        self.masks[np.arange(self.num_envs), (self.observations[:, 0] % 3).astype(int)] = 0
        return {"action_mask": self.masks} if self.masked else {}

    def reset(self, *, seed=None, options=None):
        mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        self.observations[mask] = np.arange(self.num_envs, dtype=np.float32)[mask, None] * 10.0
        if options is not None and self.scribbles:
            options["reset_mask"][:] = ~mask
            options.clear()
        if isinstance(seed, list) and self.scribbles:
            seed.clear()
        return self.observations, self._infos()

    def step(self, actions):
        self.taken.append(tree_map(np.array, actions))
        if self.scribbles:
            tree_map(lambda x: x.fill(0), actions)
        self.observations += 1.0
        ends = self.observations[:, 0] % 10 >= 3
        rewards = self.observations[:, 0].astype(np.float64)
        return self.observations, rewards, ends, np.zeros_like(ends), self._infos()


class TensorScribbler:
    """The same in torch, as a simulator that resets its copies itself."""

    def __init__(self, action_space, scribbles=True, num_envs=4):
        self.num_envs, self.scribbles = num_envs, scribbles
        self.single_observation_space, self.single_action_space = Scribbler.single_observation_space, action_space
        self.taken = []

    def reset(self):
        self.x = torch.arange(self.num_envs).float()[:, None].repeat(1, 2) * 10.0
        return self.x

    def step(self, actions):
        self.taken.append(tree_map(lambda x: x.numpy().copy(), actions))
        if self.scribbles:
            tree_map(lambda x: x.zero_(), actions)
        self.x += 1.0
        rewards, ends = self.x[:, 0].clone(), self.x[:, 0] % 10 >= 3
        self.x -= 3.0 * ends[:, None]
        return self.x, rewards, ends, torch.zeros_like(ends), {}


def collector(env, **policy):
    torch.manual_seed(0)
    model = ActorCritic(env.single_observation_space, env.single_action_space, PolicyConfig(**policy))
    return Collector(env, model, 10, torch.Generator().manual_seed(1), list(range(env.num_envs)))


def assert_stored_as_taken(rollout, model, taken):
    for t, one in enumerate(taken):
        stored = model.head.to_env(rollout.actions[t])
        for ours, theirs in zip(tree_leaves(stored), tree_leaves(one), strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("policy", [{}, {"activation": "gelu"}, {"core": "gru", "core_size": 4}], ids=str)
def test_arrays(name, mode, policy):
    rollouts = {}
    for scribbles in (False, True):
        env = Scribbler(SPACES[name], "masked" in name, scribbles, mode)
        if mode is AutoresetMode.NEXT_STEP:
            env.step = next_step(env)
        source = collector(env, **policy)
        rollouts[scribbles] = source.collect()
        assert_stored_as_taken(rollouts[scribbles], source.policy, env.taken)
        if "masked" in name:
            valid = rollouts[scribbles].valid
            illegal = (rollouts[scribbles].observations[..., 0] % 3).long()[valid]
            assert (~rollouts[scribbles].action_masks[valid]).nonzero()[:, 1].tolist() == illegal.tolist()
    for field in ("observations", "actions", "log_probs", "rewards", "terminations", "valid", "next_values"):
        assert torch.equal(getattr(rollouts[True], field), getattr(rollouts[False], field)), field
    assert rollouts[True].terminations.any()


def next_step(env):
    """Return a step that only resets the copies whose episode the step before has ended."""
    plain, ended = env.step, np.zeros(env.num_envs, bool)

    def step(actions):
        nonlocal ended
        observations, rewards, ends, truncations, infos = plain(actions)
        env.observations[ended] = np.arange(env.num_envs, dtype=np.float32)[ended, None] * 10.0
        ends, rewards[ended] = ends & ~ended, 0.0
        ended = ends.copy()
        return observations, rewards, ends, truncations, env._infos() or infos

    return step


@pytest.mark.parametrize("name", [name for name in SPACES if "masked" not in name])
def test_tensors(name):
    rollouts = {}
    for scribbles in (False, True):
        simulator = TensorScribbler(SPACES[name], scribbles)
        source = collector(TensorVectorEnv(simulator))
        rollouts[scribbles] = source.collect()
        assert_stored_as_taken(rollouts[scribbles], source.policy, simulator.taken)
    for field in ("observations", "actions", "log_probs", "rewards", "terminations"):
        assert torch.equal(getattr(rollouts[True], field), getattr(rollouts[False], field)), field


def test_evaluation_plays_on_as_if_nobody_wrote():
    returns = []
    for scribbles in (False, True):
        env = Scribbler(SPACES["Discrete"], True, scribbles)
        torch.manual_seed(0)
        policy = ActorCritic(env.single_observation_space, env.single_action_space, PolicyConfig(core="gru"))
        seeds = [1, 2, 3, 4]
        returns.append(play(policy, env, 8, seeds=seeds, deterministic=False).returns)
        assert seeds == [1, 2, 3, 4]
    assert torch.equal(*returns)


class Greedy(Count):
    """Takes what it needs out of its arguments."""

    def __init__(self, settings: dict, goals: list) -> None:
        super().__init__(settings.pop("length"))
        self.goals = [goals.pop(), goals[0].pop("x")]


class Pops(gymnasium.Wrapper):
    """Takes what it needs out of its arguments."""

    def __init__(self, env: gymnasium.Env, settings: dict) -> None:
        super().__init__(env)
        self.scale = settings.pop("scale")


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_each_copy_has_settings_of_its_own(backend):
    settings = {"settings": {"length": 4}, "goals": [{"x": 7}, 3]}
    wrapper = {"class_path": f"{__name__}.Pops", "init_args": {"settings": {"scale": 2.0}}}
    data = RolloutDataModule(
        {"id": f"{__name__}:Greedy", "num_envs": 3, "backend": backend, "kwargs": settings, "wrappers": [wrapper]}
    )
    assert data.env.get_attr("goals") == ([3, 7],) * 3 and data.env.get_attr("scale") == (2.0,) * 3
    assert settings == {"settings": {"length": 4}, "goals": [{"x": 7}, 3]}
    assert data.hparams["env"]["kwargs"] == settings
    assert wrapper["init_args"] == {"settings": {"scale": 2.0}}
    data.teardown("fit")


def test_actions_of_single_copies_are_views_that_they_may_write_into():
    class Writes(gymnasium.Wrapper):
        def step(self, action):
            seen.append(np.array(action))
            if isinstance(action, np.ndarray):
                action.fill(0)
            return self.env.step(0)

    seen = []
    for space in (spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([3, 2])):
        seen.clear()
        env = make_vector_env("tests.kit.envs:Count", 2, backend="sync")
        env.envs = [Writes(copy) for copy in env.envs]
        env.single_action_space, env.action_space = space, batch_space(space, 2)
        source = collector(env)
        stored = source.policy.head.to_env(source.collect().actions.flatten(0, 1)).numpy()
        np.testing.assert_array_equal(stored, np.array(seen))
        env.close()
