"""First episodes that are cut off at different times, whoever steps the copies."""

import contextlib
import logging

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs.simulators import TensorVectorEnv
from lightning_ppo.envs.stagger import first_lengths, in_step_because, is_staggered, prepare
from lightning_ppo.envs.torch_envs import TorchCartPole
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.support.randomness import derive_seeds
from tests.kit.envs import Loop4, make_vector_env
from tests.kit.training import make_trainer

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
LIMIT, NUM_ENVS = 8, 6
SEEDS = derive_seeds(3, 0, NUM_ENVS, "training")


class Simulator:
    """N counters in the interface of rsl_rl, all of whose episodes last equally long."""

    def __init__(self, num_envs: int = NUM_ENVS) -> None:
        self.num_envs, self.max_episode_length = num_envs, LIMIT
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int64)
        self.single_observation_space = spaces.Box(-10.0, 10.0, (1,))
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self):
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.int64)
        self.x = torch.zeros(self.num_envs, 1)
        return self.x

    def step(self, actions):
        self.x = self.x + 0.1 * actions
        self.episode_length_buf += 1
        dones = self.episode_length_buf >= self.max_episode_length
        self.x, self.episode_length_buf = self.x * ~dones[:, None], self.episode_length_buf * ~dones
        return self.x, torch.ones(self.num_envs), dones, {"time_outs": dones}


class Walks(VectorEnv):
    """N walks of LIMIT steps that somebody else resets, in NumPy; nobody sees how far they are."""

    single_observation_space = spaces.Box(-1e6, 1e6, (1,), np.float32)
    single_action_space = spaces.Discrete(2)

    def __init__(self, num_envs: int = NUM_ENVS, mode: AutoresetMode = DISABLED) -> None:
        self.metadata = {"autoreset_mode": mode}
        self.num_envs, self.max_episode_steps = num_envs, LIMIT
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.walked = np.zeros(num_envs, np.int64)

    def reset(self, *, seed=None, options=None):
        self.walked[(options or {}).get("reset_mask", slice(None))] = 0
        return self.walked[:, None].astype(np.float32), {}

    def step(self, actions):
        self.walked += 1
        over = self.walked >= LIMIT
        return self.walked[:, None].astype(np.float32), np.ones(self.num_envs), over & False, over, {}


def pendulum():
    return gymnasium.make("Pendulum-v1", max_episode_steps=LIMIT)


def pool(task, **kwargs):
    pytest.importorskip("envpool", reason="needs the extra envpool")
    kwargs = {"num_threads": 1, "max_episode_steps": LIMIT, **kwargs}
    return make_vector_env(task, NUM_ENVS, backend="envpool", kwargs=kwargs, stagger=True)


def given(env):
    return prepare(env, True)


BACKENDS = {
    "sync": lambda: make_vector_env(f"{__name__}:pendulum", NUM_ENVS, backend="sync", stagger=True),
    "async": lambda: make_vector_env(f"{__name__}:pendulum", NUM_ENVS, backend="async", stagger=True),
    "native": lambda: make_vector_env(
        "CartPole-v1", NUM_ENVS, backend="vector", kwargs={"max_episode_steps": LIMIT}, stagger=True
    ),
    "envpool": lambda: pool("Pendulum-v1"),
    "envpool, Dict": lambda: pool("CartpoleSwingup-v1"),
    "torch": lambda: make_vector_env(
        "lightning_ppo.envs.torch_envs:TorchPendulum", NUM_ENVS, kwargs={"max_episode_steps": LIMIT}, stagger=True
    ),
    "simulator": lambda: given(TensorVectorEnv(Simulator())),
    "given, sync": lambda: given(SyncVectorEnv([pendulum] * NUM_ENVS, autoreset_mode=SAME_STEP)),
    "given, NEXT_STEP": lambda: given(SyncVectorEnv([pendulum] * NUM_ENVS)),
    "given, DISABLED": lambda: given(SyncVectorEnv([pendulum] * NUM_ENVS, autoreset_mode=DISABLED)),
    "given, async": lambda: given(AsyncVectorEnv([pendulum] * NUM_ENVS, autoreset_mode=SAME_STEP)),
    "given, no counter": lambda: given(Walks()),
}


def collector(env, steps, seeds=SEEDS):
    torch.manual_seed(0)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    return Collector(env, policy, steps, torch.Generator().manual_seed(1), seeds, skip_first=is_staggered(env))


def lengths(rollout):
    """Return the lengths of the episodes of each copy, filler rows left out, and whether every one was truncated."""
    found = [[] for _ in range(rollout.num_envs)]
    for env, (ends, valid) in enumerate(zip(rollout.truncations.T, rollout.valid.T, strict=True)):
        done = 0
        for end, counts in zip(ends.tolist(), valid.tolist(), strict=True):
            done += counts
            if end:
                found[env].append(done)
                done = 0
    assert not rollout.terminations.any()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_episodes_end_at_different_times_and_the_others_at_the_limit(backend):
    with contextlib.closing(BACKENDS[backend]()) as env:
        assert is_staggered(env) and in_step_because(env) == ""
        rollout = collector(env, 3 * LIMIT + 3).collect()
    found = lengths(rollout)
    first = [one[0] for one in found]
    assert len(set(first)) >= 4 and max(first) <= LIMIT
    assert all(length == LIMIT for one in found for length in one[1:]) and all(len(one) >= 3 for one in found)
    # the cut episodes are learnt from, but not reported
    assert set(rollout.episodes.lengths.tolist()) == {LIMIT}
    assert len(rollout.episodes.lengths) == sum(len(one) - 1 for one in found)
    if backend not in ("torch", "given, no counter"):  # which get one seed for all copies
        assert first == first_lengths(SEEDS, LIMIT, NUM_ENVS).tolist()


def test_a_pool_shows_the_last_observation_with_the_cut_and_then_the_first_of_the_next_episode():
    with contextlib.closing(pool("Pendulum-v1")) as env:
        cut = first_lengths(SEEDS, LIMIT, NUM_ENVS)
        copy = int(np.argmax(cut < LIMIT))
        env.reset(seed=SEEDS)
        actions = np.zeros((NUM_ENVS, 1), np.float32)
        seen = [env.step(actions) for _ in range(cut[copy] + 2)]
        elapsed = seen[cut[copy] - 1][4]["elapsed_step"][copy]
        assert elapsed == cut[copy] and seen[cut[copy] - 1][3][copy]
        _, rewards, terminations, truncations, _ = seen[cut[copy]]
        assert rewards[copy] == 0.0 and not terminations[copy] and not truncations[copy]
        fresh, after = seen[cut[copy]][0][copy], seen[cut[copy] + 1]
        assert abs(after[0][copy, 2] - fresh[2]) < 1.0  # goes on from there: the velocity changes by less than 0.75
        assert after[4]["elapsed_step"][copy] == 1 and after[1][copy] < 0.0
        # a new pool begins as the first one did, and evaluation as if there were no such setting
        assert (first_ends(env) == cut).all()
        env.stagger = False
        assert (first_ends(env) == LIMIT).all()


def test_a_first_episode_that_ends_by_itself_is_reported():
    env = make_vector_env("CartPole-v1", 64, backend="vector", kwargs={"max_episode_steps": 30}, stagger=True)
    rollout = collector(env, 12, derive_seeds(1, 0, 64, "training")).collect()
    fallen = rollout.terminations & rollout.valid
    assert fallen.any() and (rollout.truncations & rollout.valid & ~fallen).any()
    lengths = (fallen.nonzero()[:, 0] + 1).tolist()  # nobody falls twice in 12 steps
    assert rollout.episodes.lengths.tolist() == lengths


def first_ends(env):
    env.reset(seed=SEEDS)
    ends = np.stack([env.step(np.zeros((NUM_ENVS, 1), np.float32))[3] for _ in range(LIMIT)])
    return ends.argmax(0) + 1


def test_a_cut_one_step_before_the_limit_starts_one_new_episode():
    with contextlib.closing(pool("Pendulum-v1", max_episode_steps=2)) as env:
        rollout = collector(env, 12).collect()
        assert set(first_lengths(SEEDS, 2, NUM_ENVS)) == {1, 2}
    assert all(one[1:] == [2] * (len(one) - 1) for one in lengths(rollout))
    assert rollout.valid.sum() == 12 * NUM_ENVS - rollout.truncations[:-1].sum()


def test_a_wrapper_may_set_the_limit():
    entry = {"class_path": "gymnasium.wrappers.TimeLimit", "init_args": {"max_episode_steps": LIMIT}}
    for backend in ("sync", "async"):
        env = make_vector_env("tests.kit.envs:Loop4", 2, backend=backend, wrappers=[entry], stagger=True)
        with contextlib.closing(env):
            assert is_staggered(env)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: make_vector_env("tests.kit.envs:Loop4", 2, backend="sync", stagger=True), "tell no time limit"),
        (lambda: make_vector_env("tests.kit.envs:Loop4", 2, backend="async", stagger=True), "tell no time limit"),
        (lambda: given(SyncVectorEnv([Loop4] * 2)), "tell no time limit"),
        (lambda: given(Walks(2, NEXT_STEP)), "Walks has neither an attribute stagger"),
        (lambda: pool("Pendulum-v1", max_episode_steps=2**31 - 1), "the task has no time limit"),
    ],
    ids=["sync", "async", "given", "no counter", "envpool"],
)
def test_where_it_cannot_be_the_reason_is_known(make, reason):
    with contextlib.closing(make()) as env:
        assert not is_staggered(env) and reason in in_step_because(env)


def test_the_line_is_logged_once_and_only_where_it_was_asked_for(caplog):
    for stagger, lines in ((True, 1), (False, 0)):
        caplog.clear()
        data = RolloutDataModule(Walks(2, NEXT_STEP), num_steps=8, stagger=stagger, rollouts_per_epoch=1)
        model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 8})
        with caplog.at_level(logging.WARNING, "lightning_ppo"):
            make_trainer(max_epochs=2).fit(model, data)
        assert caplog.text.count("env.stagger has no effect: Walks has neither") == lines


def test_a_given_environment_is_staggered_or_not_as_it_is_told():
    for stagger in (True, False):
        env = TorchCartPole(NUM_ENVS, max_episode_steps=LIMIT)
        RolloutDataModule(env, num_steps=8, stagger=stagger)
        assert env.stagger is stagger and is_staggered(env) is stagger


@pytest.mark.parametrize("backend", ["native", "given, DISABLED", "given, no counter"])
def test_resuming_in_the_midst_of_first_episodes_goes_on_exactly(backend):
    def fresh():
        return collector(BACKENDS[backend](), 5)

    first = fresh()
    first.collect()
    state = first.state_dict()
    assert state["stepper"]["reason"] == ""
    expected = [first.collect() for _ in range(4)]
    second = fresh()
    second.load_state_dict(state)
    for theirs, ours in zip(expected, [second.collect() for _ in range(4)], strict=True):
        for name in ("observations", "actions", "rewards", "truncations", "valid", "log_probs"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert torch.equal(ours.episodes.lengths, theirs.episodes.lengths)


def truncations(caplog, **settings):
    """Train one rollout of native CartPole and return its truncations."""
    env = {"id": "CartPole-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 8}}
    data = RolloutDataModule(env, num_steps=8, rollouts_per_epoch=1, seed=1, **settings)
    pl.seed_everything(1, verbose=False)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 16})
    seen = []
    look = pl.callbacks.LambdaCallback(on_train_batch_start=lambda *args: seen.append(args[2].truncations.clone()))
    with caplog.at_level(logging.WARNING, "lightning_ppo"):
        make_trainer(max_epochs=1, callbacks=[look]).fit(model, data)
    assert "env.stagger" not in caplog.text
    return seen[0]


@pytest.mark.ranks
@pytest.mark.parametrize("settings", [{"processes": 2}, {"overlap": True}, {"overlap": True, "processes": 2}])
def test_collecting_processes_begin_at_the_same_times_as_one(settings, caplog):
    alone, shared = truncations(caplog), truncations(caplog, **settings)
    lengths = first_lengths(derive_seeds(1, 0, 4, "training"), 8, 4)
    first = alone.int().argmax(0) + 1
    assert first.tolist() == lengths.tolist()  # in 8 steps no pole falls
    assert torch.equal(shared, alone)


def test_evaluation_plays_whole_episodes():
    data = RolloutDataModule(
        {"id": "CartPole-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 8}}, num_steps=8, seed=1
    )
    assert is_staggered(data.env)
    assert not is_staggered(data.environments.evaluation)
    data.teardown("fit")


def test_the_training_loop_saves_and_resumes_exactly(tmp_path):
    def fit(epochs, checkpoint=None):
        env = {"id": "CartPole-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 30}}
        data = RolloutDataModule(env, num_steps=8, rollouts_per_epoch=1, seed=1)
        pl.seed_everything(1, verbose=False)
        model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 16})
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return model, trainer

    straight, _ = fit(4)
    _, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    resumed, _ = fit(4, tmp_path / "cut.ckpt")
    for name, expected in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name
