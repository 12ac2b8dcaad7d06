"""Vector environments of tensors: the same rollouts as with NumPy, and no look at the device while collecting."""

import logging

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

import lightning_ppo.collection.storage
from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.envs.simulators import TensorVectorEnv
from lightning_ppo.envs.torch_envs import TorchCartPole
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig, RolloutConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from lightning_ppo.support.tree import tree_leaves, tree_map
from tests.kit.devices import Looks
from tests.kit.envs import Count, vector
from tests.kit.training import make_trainer

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


class Sampled(Count):
    """Counts, with actions that matter and, in a Dict, a mask that forbids one of three choices."""

    def __init__(self, length: int, end: str, masked: bool = False) -> None:
        super().__init__(length, end, None)
        self.masked = masked
        self.action_space = spaces.Discrete(3)
        if masked:
            space = {"mask": spaces.MultiBinary(3), "t": self.observation_space}
            self.observation_space = spaces.Dict(space)

    def _observation(self):
        seen = super()._observation()
        return {"mask": np.arange(3, dtype=np.int8) != self.t % 3, "t": seen} if self.masked else seen

    def step(self, action):
        assert not self.masked or action != self.t % 3
        observation, reward, *rest = super().step(action)
        return observation, reward + 10.0 * float(action), *rest


class Tensors(VectorWrapper):
    """Any vector environment of NumPy arrays as one of tensors, which it reuses and writes over at every step."""

    def __init__(self, env: VectorEnv, finals: bool = True) -> None:
        super().__init__(env)
        self.finals, self.memory = finals, None

    def _tensors(self, values):
        fresh = tree_map(lambda x: torch.from_numpy(np.array(x)), values)
        if self.memory is None:
            self.memory = tree_map(torch.clone, fresh)
        return tree_map(lambda kept, x: kept.copy_(x), self.memory, fresh)

    def reset(self, **kwargs):
        self.memory = None
        observations, _ = self.env.reset(**kwargs)
        return self._tensors(observations), {}

    def step(self, actions):
        assert isinstance(actions, torch.Tensor)
        observations, rewards, terminations, truncations, infos = self.env.step(actions.numpy())
        # final observations of all copies; those of copies that go on are rubbish
        final = tree_map(lambda x: np.full_like(x, 77), observations)
        for i, one in enumerate(infos.get("final_obs", ())):
            if one is not None:
                tree_map(lambda x, y, i=i: x.__setitem__(i, y), final, one)
        shown = {"final_observation": tree_map(torch.from_numpy, final)} if self.finals and "final_obs" in infos else {}
        ends = (torch.from_numpy(np.array(x)) for x in (terminations, truncations))
        return self._tensors(observations), torch.from_numpy(np.array(rewards)), *ends, shown


def counters(mode: AutoresetMode, masked: bool = False) -> VectorEnv:
    ends = [(1, "term"), (2, "trunc"), (3, "term"), (7, "trunc")]
    return vector([lambda length=length, end=end: Sampled(length, end, masked) for length, end in ends], mode)


def collect(env: VectorEnv, num_steps: int, rollouts: int = 3, action_mask: str = "auto", **policy: object) -> list:
    torch.manual_seed(0)
    space = env.single_observation_space
    space = spaces.Dict({"t": space["t"]}) if action_mask != "auto" else space
    model = ActorCritic(space, env.single_action_space, PolicyConfig(**policy), NormalizeConfig())
    collector = Collector(env, model, num_steps, torch.Generator().manual_seed(1), [0, 1, 2, 3], action_mask)
    stream = RolloutStream(collector, RolloutConfig(num_steps=num_steps), rollouts)
    return list(stream)


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize("policy", [{}, {"core": "gru", "core_size": 4}], ids=["mlp", "gru"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_tensors_give_the_rollouts_that_arrays_give(mode, policy, masked):
    mask = "observation:mask" if masked else "auto"
    arrays = collect(counters(mode, masked), 10, action_mask=mask, **policy)
    tensors = collect(Tensors(counters(mode, masked)), 10, action_mask=mask, **policy)
    for ours, theirs in zip(tensors, arrays, strict=True):
        valid = theirs.valid
        for name in ("observations", "actions", "rewards", "terminations", "truncations", "action_masks"):
            for mine, other in zip(*(tree_leaves(getattr(r, name)) for r in (ours, theirs)), strict=True):
                # what is done in filler rows does not matter
                assert (mine is None and other is None) or torch.equal(mine[valid], other[valid]), name
        assert torch.equal(ours.valid, valid)
        bootstrapped = valid & ~theirs.terminations
        torch.testing.assert_close(ours.next_values[bootstrapped], theirs.next_values[bootstrapped])
        for name in ("log_probs", "values", "scaled_rewards", "advantages", "returns"):
            torch.testing.assert_close(getattr(ours, name)[valid], getattr(theirs, name)[valid], msg=name)
        for mine, other in zip(
            tree_leaves(ours.final_observations()), tree_leaves(theirs.final_observations()), strict=True
        ):
            assert torch.equal(mine.sort(0).values, other.sort(0).values)  # they count in the statistics
        assert torch.equal(ours.episodes.returns, theirs.episodes.returns)
        assert torch.equal(ours.episodes.lengths, theirs.episodes.lengths)


def test_without_final_observations_the_last_one_acted_on_stands_for_them(caplog):
    caplog.set_level(logging.WARNING)
    (rollout,) = collect(Tensors(counters(SAME_STEP), finals=False), 10, 1)
    cut = rollout.truncations & ~rollout.terminations
    assert cut[:-1].sum() == 5  # of length 2 at steps 2, 4, 6, 8 and of length 7 at step 7
    torch.testing.assert_close(rollout.next_values[cut], rollout.values[cut])
    assert caplog.text.count("gives no infos['final_obs']") == 1


@pytest.mark.parametrize(
    "policy",
    [{}, {"core": "lstm", "core_size": 4}, {"core": "transformer", "core_size": 4}],
    ids=["mlp", "lstm", "transformer"],
)
def test_a_step_never_waits_for_the_device(policy):
    """The number of looks at the device does not depend on the number of steps of a rollout."""
    counts = []
    for num_steps in (4, 16):
        env = TorchCartPole(8)
        model = ActorCritic(env.single_observation_space, env.single_action_space, PolicyConfig(**policy))
        collector = Collector(env, model, num_steps, torch.Generator().manual_seed(1), [0])
        with torch.no_grad(), Looks() as looks:
            collector.collect()
        counts.append(looks.count)
    assert counts[0] == counts[1] <= 12


def test_a_policy_elsewhere_gets_observations_as_they_come(monkeypatch):
    """With copies on another device, here forced onto the CPU, rollouts are the same."""
    expected = collect(counters(SAME_STEP, True), 10, action_mask="observation:mask", core="gru", core_size=4)
    monkeypatch.setattr(lightning_ppo.collection.collector, "resides_elsewhere", lambda device: True)
    there = collect(counters(SAME_STEP, True), 10, action_mask="observation:mask", core="gru", core_size=4)
    for ours, theirs in zip(there, expected, strict=True):
        assert torch.equal(ours.observations["t"], theirs.observations["t"])
        for name in ("actions", "action_masks", "starts", "rewards", "advantages", "log_probs"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_arrays_that_a_wrapper_makes_tensors_of_are_learnt_from_and_scored(mode):
    """The wrapper may change rewards, for all one knows, so that those within are reported: arrays."""
    lengths = [2, 3, 5, 7]
    env = Tensors(vector([lambda length=length: Sampled(length, "term") for length in lengths], mode))
    data = RolloutDataModule(env, num_steps=16, rollouts_per_epoch=1)
    model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 32})
    make_trainer().fit(model, data)
    assert model.env_steps >= 48 and {*model.recent_lengths} == {*lengths}


def test_resuming_goes_on_exactly():
    def collector():
        torch.manual_seed(0)
        env = TorchCartPole(6, max_episode_steps=30)
        model = ActorCritic(env.single_observation_space, env.single_action_space, PolicyConfig(core="gru"))
        return Collector(env, model, 40, torch.Generator().manual_seed(1), [0])

    first = collector()
    first.collect()
    state = first.state_dict()
    assert state["stepper"]["reason"] == ""
    expected = first.collect()
    second = collector()
    second.load_state_dict(state)
    found = second.collect()
    for name in ("observations", "actions", "rewards", "advantages", "log_probs", "next_values", "states"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
    assert torch.equal(found.episodes.returns, expected.episodes.returns) and len(found.episodes.returns) > 0


def test_evaluation_plays_whole_episodes():
    env = TorchCartPole(3, max_episode_steps=20)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    episodes = play(policy, env, 7, seeds=[4])
    assert len(episodes.returns) == 7
    assert torch.equal(episodes.returns, episodes.lengths.double()) and episodes.lengths.max() <= 20


@pytest.mark.learning
def test_cartpole_is_learnt_with_many_copies():
    pl.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "lightning_ppo.envs.torch_envs:TorchCartPole", num_envs=256, num_steps=32, rollouts_per_epoch=20
    )
    model = PPO(
        data.observation_space,
        data.action_space,
        update={"epochs": 4, "minibatch_size": 1024},
        optimizer={"learning_rate": 2e-3},
    )
    make_trainer(max_epochs=1).fit(model, data)
    episodes = play(model.policy, TorchCartPole(16), 32, seeds=[4])
    assert episodes.returns.mean() >= 450.0


class Lying(TorchCartPole):
    """Returns what it must not at its third step."""

    def __init__(self, kind: str) -> None:
        super().__init__(4)
        self.kind, self.calls = kind, 0

    def step(self, actions):
        observations, rewards, terminations, truncations, infos = super().step(actions)
        self.calls += 1
        if self.calls == 3:
            if self.kind == "nan reward":
                rewards[2] = float("nan")
            if self.kind == "nan observation":
                observations[1, 0] = float("nan")
            if self.kind == "column of rewards":
                rewards = rewards.unsqueeze(1)
            if self.kind == "ends as numbers":
                terminations = terminations.float()
            if self.kind == "exception":
                raise ZeroDivisionError("the wheel came off")
        return observations, rewards, terminations, truncations, infos


class Masked(TorchCartPole):
    """Forbids to push to the right in its infos, and at the third step everything to copy 1."""

    def _masks(self, *forbidden):
        masks = torch.tensor([[True, False]]).repeat(self.num_envs, 1)
        masks[list(forbidden)] = False
        return {"action_mask": masks}

    def reset(self, **kwargs):
        self.calls = 0
        return super().reset(**kwargs)[0], self._masks()

    def step(self, actions):
        assert (actions == 0).all()
        self.calls += 1
        *rest, infos = super().step(actions)
        return *rest, infos | self._masks(*([1] if self.calls == 3 else []))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan reward", "env 2 returned the reward nan at step 3"),
        ("nan observation", "env 1 returned the observation nan at step 3"),
        ("column of rewards", r"returned rewards of shape \(4, 1\) .* at step 3, expected \(4,\)"),
        ("ends as numbers", r"returned terminations of shape \(4,\) and type torch.float32 at step 3, .* bool"),
        ("exception", "raised in step after 2 steps: ZeroDivisionError: the wheel came off"),
    ],
)
def test_faults_are_named(kind, message):
    env = Lying(kind)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    with pytest.raises(EnvironmentFault, match=message):
        Collector(env, policy, 8, torch.Generator(), [0]).collect()


def test_masks_in_infos_are_obeyed_and_checked():
    env = Masked(4)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    collector = Collector(env, policy, 2, torch.Generator().manual_seed(0), [0])
    rollout = collector.collect()
    assert (rollout.actions == 0).all()
    assert torch.equal(rollout.action_masks, torch.tensor([True, False]).expand(2, 4, 2))
    with pytest.raises(EnvironmentFault, match="env 1 masks every choice of an action at step 3"):
        Collector(env, policy, 8, torch.Generator(), [0]).collect()
    assert play(policy, Masked(4, max_episode_steps=2), 4, seeds=[0]).lengths.tolist() == [2, 2, 2, 2]


class Late(Masked):
    """Says nothing of masks before its first step."""

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], {}

    def step(self, actions):
        return super().step(torch.zeros_like(actions))


def test_masks_that_come_late_are_not_ignored():
    env = Late(4)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    with pytest.raises(EnvironmentFault, match=r"gave info\['action_mask'\] at step 1, but none before"):
        Collector(env, policy, 2, torch.Generator(), [0]).collect()
    assert Collector(env, policy, 2, torch.Generator(), [0], "none").collect().action_masks is None


@pytest.mark.parametrize(
    ("mode", "mask", "error", "message"),
    [
        (DISABLED, "auto", EnvironmentFault, "declares DISABLED autoreset; an environment on a device must reset"),
        (SAME_STEP, "method:legal", ConfigError, "env.action_mask: method:legal calls single copies"),
        (SAME_STEP, "info", EnvironmentFault, r"gave no mask at step 0, expected \(2, 3\)"),
    ],
)
def test_what_is_not_supported_is_said(mode, mask, error, message):
    env = Tensors(vector([lambda: Sampled(3, "term")] * 2, mode))
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    with pytest.raises(error, match=message):
        Collector(env, policy, 8, torch.Generator(), [0, 1], mask)


# simulators


class RslRl:
    """Two copies of rsl_rl's shape: observations in a mapping, dones as numbers, time outs in the extras."""

    num_envs = 2

    def __init__(self) -> None:
        self.t = torch.zeros(2)

    def reset(self):
        self.t = torch.zeros(2)
        return {"policy": self.t[:, None].clone()}, {}

    def step(self, actions):
        self.t = self.t + 1.0
        # copy 0 ends by itself after 2 steps, copy 1 is cut off after 3
        dones = self.t >= torch.tensor([2.0, 3.0])
        extras = {"time_outs": (dones & torch.tensor([False, True])).float()}
        rewards, self.t = self.t.clone(), torch.where(dones, 0.0, self.t)
        return {"policy": self.t[:, None].clone()}, rewards, dones.long(), extras


def test_simulators_with_time_outs_are_vector_environments():
    space = spaces.Dict({"policy": spaces.Box(0.0, 10.0, (1,), np.float32)})
    env = TensorVectorEnv(RslRl(), space, spaces.Box(-1.0, 1.0, (1,), np.float32))
    torch.manual_seed(0)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    rollout = Collector(env, policy, 6, torch.Generator().manual_seed(0), [0]).collect()
    assert rollout.observations["policy"][..., 0].T.tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert rollout.terminations.T.int().tolist() == [[0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]]
    assert rollout.truncations.T.int().tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]]
    assert rollout.episodes.returns.tolist() == [3.0, 6.0, 3.0, 3.0, 6.0]
    assert rollout.episodes.lengths.tolist() == [2, 3, 2, 2, 3]


def test_simulators_of_gymnasiums_shape_are_seeded_and_name_their_spaces():
    cartpole = TorchCartPole(3)
    env = TensorVectorEnv(cartpole)
    assert (env.single_observation_space, env.single_action_space) == (
        cartpole.single_observation_space,
        gymnasium.spaces.Discrete(2),
    )
    seen, _ = env.reset(seed=5)
    assert torch.equal(seen, TorchCartPole(3).reset(seed=5)[0])
    *_, infos = env.step(torch.zeros(3, dtype=torch.int64))
    assert infos["final_obs"].shape == (3, 4)
    with pytest.raises(ConfigError, match="TensorVectorEnv: RslRl has no single_observation_space"):
        TensorVectorEnv(RslRl())
