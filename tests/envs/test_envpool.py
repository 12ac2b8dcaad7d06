"""EnvPool behind the `env` section: the same physics, the same treatment of episode ends, seeds by copy."""

import logging

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium.vector import AutoresetMode

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.envs import autoreset_mode
from lightning_ppo.envs.pool import SAME_AS_GYMNASIUM
from lightning_ppo.envs.state import get_env_state
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from tests.kit.collecting import linear_policy, stream
from tests.kit.envs import make_vector_env
from tests.kit.paths import ROOT


@pytest.fixture
def pool():
    """Return a builder of EnvPool environments, which are closed after the test."""
    pytest.importorskip("envpool", reason="needs the extra envpool")
    built = []

    def build(env_id, num_envs, **kwargs):
        built.append(make_vector_env(env_id, num_envs, backend="envpool", kwargs={"num_threads": 1, **kwargs}))
        return built[-1]

    yield build
    for env in built:
        env.close()


def start(env_id, observation):
    """Return positions and velocities of an episode's first observation; where the agent stands does not matter."""
    name, nq = env_id.split("-")[0], {"HalfCheetah": 9, "Hopper": 6, "Walker2d": 9, "Swimmer": 5}
    if name in nq:
        hidden = 2 if name == "Swimmer" else 1
        shown = nq[name] - hidden
        return np.concatenate((np.zeros(hidden), observation[:shown])), observation[shown:]
    if name == "InvertedPendulum":
        return observation[:2], observation[2:]
    if name == "InvertedDoublePendulum":
        angles = np.arctan2(observation[1:3], observation[3:5])
        return np.concatenate((observation[:1], angles)), observation[5:8]
    angles = np.arctan2(observation[2:4], observation[:2])  # Reacher, whose target does not move
    return np.concatenate((angles, observation[4:6])), np.concatenate((observation[6:8], np.zeros(2)))


@pytest.mark.parametrize(
    "env_id",
    [
        *("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Reacher-v5", "InvertedPendulum-v5"),
        "InvertedDoublePendulum-v5",
    ],
)
def test_same_state_and_actions_give_the_same_rewards_and_observations(pool, env_id):
    """Over 10 steps: contacts amplify rounding, so that the paths part later (HalfCheetah after about 30 steps)."""
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    ours = pool(env_id, 2)
    observations, _ = ours.reset(seed=[3, 4])
    theirs = gymnasium.make(env_id, disable_env_checker=True)
    theirs.reset(seed=0)
    theirs.unwrapped.set_state(*start(env_id, observations[1]))
    if env_id == "Reacher-v5":
        theirs.unwrapped.goal = observations[1, 4:6]
    assert ours.single_observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.action_space
    generator = np.random.default_rng(0)
    for _ in range(10):
        actions = generator.uniform(-1.0, 1.0, ours.action_space.shape).astype(np.float32)
        observations, rewards, terminations, truncations, _ = ours.step(actions)
        observation, reward, terminated, truncated, _ = theirs.step(actions[1])
        np.testing.assert_allclose(observations[1], observation, atol=1e-9)
        np.testing.assert_allclose(rewards[1], reward, rtol=1e-6, atol=1e-6)  # EnvPool's rewards are float32
        assert (terminations[1], truncations[1]) == (terminated, truncated)
        if terminated:
            break


def test_final_observation_comes_with_the_end_and_the_next_step_only_resets(pool):
    env = pool("CartPole-v1", 2, max_episode_steps=12)
    assert autoreset_mode(env) is AutoresetMode.NEXT_STEP
    stepper = VectorStepper(env)
    stepper.reset([0, 1])
    starts, seen = stepper.observations.copy(), []
    # pushed to the left all the time the first pole falls; the second, pushed to and fro, lasts until the time limit
    for t in range(13):
        rewards, terminations, truncations = stepper.step(np.array([0, t % 2]))
        seen.append((stepper.observations.copy(), rewards, terminations, truncations, stepper.filler.copy()))
    fallen = next(t for t, step in enumerate(seen) if step[2][0])
    assert abs(seen[fallen][0][0, 2]) > 0.2095  # beyond 12 degrees: the pole's true last angle
    assert not seen[fallen][3][0] and not seen[fallen][4][0]
    after = seen[fallen + 1]
    assert after[4].tolist() == [True, False] and after[1][0] == 0.0
    assert np.abs(after[0][0]).max() <= 0.05  # where CartPole starts
    assert (after[0][0] != starts[0]).any()
    # the time limit is a truncation, in the 12th step
    assert [bool(step[3][1]) for step in seen] == [False] * 11 + [True, False]
    assert not any(step[2][1] for step in seen)
    assert np.abs(seen[11][0][1] - seen[10][0][1]).max() < 0.5  # goes on from the step before
    assert seen[12][4][1]


def test_time_limits_bootstrap_from_the_final_observation(pool):
    env = pool("CartPole-v1", 2, max_episode_steps=5)
    policy = linear_policy(env)
    with torch.no_grad():
        rollout = stream(env, policy, 12, gamma=0.5, gae_lambda=0.0).next_rollout()
    # episodes of 5 steps and a filler row: rows 4 and 10 are truncated, rows 5 and 11 are filler
    assert rollout.truncations[:, 0].nonzero().flatten().tolist() == [4, 10]
    assert (~rollout.valid[:, 0]).nonzero().flatten().tolist() == [5, 11]
    # the row after an end shows the final observation, whose value is bootstrapped from
    torch.testing.assert_close(rollout.next_values[4], rollout.values[5])
    torch.testing.assert_close(rollout.returns[4], 1.0 + 0.5 * rollout.values[5])


def test_every_copy_has_its_own_seed(pool):
    env = pool("HalfCheetah-v5", 3)
    first, _ = env.reset(seed=[1, 2, 2**32 - 1])
    again, _ = env.reset(seed=[2, 1, 7])
    np.testing.assert_array_equal(first[[1, 0]], again[:2])
    assert (first[2] != again[2]).any()
    on, _ = env.reset()
    assert (on != again).any()
    np.testing.assert_array_equal(env.reset(seed=1)[0][:2], first[:2])


def test_training_repeats_itself_and_resumes_with_new_episodes(pool, tmp_path, caplog):
    def fit(checkpoint=None, epochs=1):
        data = RolloutDataModule("Hopper-v5", 2, 32, backend="envpool", env_kwargs={"num_threads": 1}, seed=1)
        pl.seed_everything(1, verbose=False)
        model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 64})
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return model, trainer

    model, trainer = fit()
    other, _ = fit()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    trainer.save_checkpoint(tmp_path / "pool.ckpt")
    with caplog.at_level(logging.INFO, "lightning_ppo"):
        resumed, _ = fit(tmp_path / "pool.ckpt", epochs=2)
    assert resumed.iterations == 10
    assert "Episodes in progress were restarted" in caplog.text


def test_what_cannot_work_is_one_line(pool):
    with pytest.raises(EnvironmentFault, match="no task 'HalfCheeta-v5'; did you mean HalfCheetah-v5"):
        pool("HalfCheeta-v5", 1)
    with pytest.raises(ConfigError, match=r"env\.kwargs\.batch_size"):
        pool("HalfCheetah-v5", 1, batch_size=1)
    with pytest.raises(EnvironmentFault, match="lenght"):
        pool("HalfCheetah-v5", 1, lenght=3)


@pytest.mark.parametrize("names", [["reward_run", "reward_ctrl"], "auto"], ids=["named", "auto"])
def test_what_the_pool_tells_is_logged(names):
    pytest.importorskip("envpool", reason="needs the extra envpool")
    data = RolloutDataModule(
        "HalfCheetah-v4",
        num_envs=2,
        num_steps=18,
        backend="envpool",
        env_kwargs={"num_threads": 1, "max_episode_steps": 8},
        rollouts_per_epoch=2,
        evaluation={"episodes": 2, "num_envs": 2},
        log_info=names,
        seed=1,
    )
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 36}, compile=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, data)
    told = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for prefix in ("rollout", "eval"):
        # the terms of the reward add up to it, without the steps that only reset
        terms = [told[f"{prefix}/info/{name}_per_episode"] for name in ("reward_run", "reward_ctrl")]
        assert sum(terms) == pytest.approx(told[f"{prefix}/return_mean"], rel=1e-4)
        assert told[f"{prefix}/length_mean"] == 8.0
        per_step = told[f"{prefix}/info/reward_ctrl_per_step"]
        assert -0.1 * 6 * 1.0 <= per_step < 0.0


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "envpool", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'lightning-ppo\[envpool\]'"):
        make_vector_env("HalfCheetah-v5", 1, backend="envpool")


MUJOCO = sorted(
    config.env.id
    for config in (load([path]) for path in (ROOT / "configs").glob("*.yaml"))
    if config.env.id.endswith("-v5") and not config.env.id.startswith("ALE/")
)
"""Tasks of the configs."""
CLIPPED = 10.0
"""Velocities are shown up to this by Hopper, Walker2d and InvertedDoublePendulum."""


def test_what_is_said_to_be_the_same_is_every_task_of_the_configs_but_ant():
    assert sorted(SAME_AS_GYMNASIUM) == [env_id for env_id in MUJOCO if env_id != "Ant-v5"]


@pytest.mark.parametrize("env_id", SAME_AS_GYMNASIUM)
def test_each_of_many_steps_is_that_of_gymnasium(pool, env_id):
    """Gymnasium's environment is put into the state of EnvPool's before each step, as far as observations show it."""
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    ours, theirs = pool(env_id, 2), gymnasium.make(env_id, disable_env_checker=True)
    assert ours.max_episode_steps == theirs.spec.max_episode_steps
    theirs.reset(seed=0)
    inner, generator = theirs.unwrapped, np.random.default_rng(0)
    observations, _ = ours.reset(seed=[3, 4])
    before, compared, ends, ended = observations[1], 0, [], np.zeros(2, dtype=bool)
    for _ in range(300):
        actions = generator.uniform(theirs.action_space.low, theirs.action_space.high, ours.action_space.shape)
        actions = (0.3 * actions).astype(np.float32)
        resets = ended[1]
        observations, rewards, terminations, truncations, _ = ours.step(actions)
        shown = before if env_id == "Reacher-v5" else before[np.abs(before) > CLIPPED - 1e-9]
        if not resets and (env_id == "Reacher-v5" or not shown.size):
            inner.set_state(*start(env_id, before))
            if env_id == "Reacher-v5":
                inner.goal = before[4:6]
            observation, reward, terminated, _, _ = inner.step(actions[1])
            np.testing.assert_allclose(observations[1], observation, atol=1e-6)
            np.testing.assert_allclose(rewards[1], reward, rtol=1e-5, atol=1e-5)
            assert terminations[1] == terminated
            compared, ends = compared + 1, [*ends, terminated]
        before, ended = observations[1], terminations | truncations
    assert compared > 50
    assert any(ends) == (env_id.split("-")[0] not in ("HalfCheetah", "Swimmer", "Reacher"))


@pytest.mark.parametrize("env_id", SAME_AS_GYMNASIUM)
def test_first_observations_are_distributed_as_those_of_gymnasium(pool, env_id):
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    count, copies = 1024, 8
    ours, theirs = pool(env_id, copies), gymnasium.make(env_id, disable_env_checker=True)
    first = [ours.reset(seed=[*range(copies)])[0].copy()]
    first += [ours.reset()[0].copy() for _ in range(count // copies - 1)]
    theirs.reset(seed=0)
    pair = np.concatenate(first), np.stack([theirs.reset()[0] for _ in range(count)])
    for a, b in zip(*(np.sort(x.round(12), axis=0).T for x in pair), strict=True):
        everywhere = np.concatenate((a, b))
        shares = (np.searchsorted(x, everywhere, "right") / count for x in (a, b))
        # Kolmogorov and Smirnov: 0.1 is exceeded by one of 30,000 pairs of equal distributions
        assert np.abs(np.subtract(*shares)).max() < 0.1


def test_ant_is_another(pool):
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    ours, theirs = pool("Ant-v5", 1), gymnasium.make("Ant-v5", disable_env_checker=True)
    observations, _ = ours.reset(seed=[3])
    theirs.reset(seed=0)
    positions = np.concatenate((np.zeros(2), observations[0, :13]))
    theirs.unwrapped.set_state(positions, observations[0, 13:27])
    observation = theirs.unwrapped.step(np.ones(8))[0]
    difference = np.abs(ours.step(np.ones((1, 8), dtype=np.float32))[0][0, :27] - observation[:27]).max()
    assert 1e-7 < difference < 1e-2


def test_a_pool_cannot_be_saved_which_is_why_it_is_not_taken_by_itself(pool):
    env = pool("HalfCheetah-v5", 1)
    env.reset(seed=[0])
    state, reason = get_env_state(env)
    assert state is None and reason
    assert make_vector_env("HalfCheetah-v5", 1).unwrapped.__class__.__name__ == "SyncVectorEnv"
