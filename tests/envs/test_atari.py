"""Atari: every backend shows the same pictures, whole games are scored, and what is learnt from is told apart."""

import io

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.envs import get_env_state, set_env_state
from lightning_ppo.envs.atari import AtariLessons, with_lessons
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.environment import AtariConfig, EnvConfig
from lightning_ppo.settings.loading import as_section, load, to_yaml
from lightning_ppo.support.errors import ConfigError
from tests.kit.collecting import linear_policy, stream
from tests.kit.envs import make_vector_env


@pytest.fixture
def game():
    """Return a builder of games, which are closed after the test."""
    pytest.importorskip("ale_py", reason="needs the extra atari")
    built = []

    def build(name, num_envs=2, backend="auto", **settings):
        if backend != "auto":
            pytest.importorskip({"sync": "cv2"}.get(backend, backend), reason="needs an extra")
        settings = AtariConfig(**settings)
        built.append(make_vector_env(f"ALE/{name}-v5", num_envs, backend=backend, atari=settings))
        return built[-1]

    yield build
    for env in built:
        env.close()


def same_game(first, second, actions, seeds, padded_alike=True):
    """Assert that two vector environments show the same steps; return how many games ended."""
    one, other = VectorStepper(first), VectorStepper(second)
    one.reset(seeds[0])
    other.reset(seeds[1])
    ends = 0
    for t, action in enumerate(actions):
        if padded_alike or t >= 4:
            np.testing.assert_array_equal(one.observations, other.observations, f"after {t} steps")
        else:
            np.testing.assert_array_equal(one.observations[:, -1], other.observations[:, -1])
        for mine, theirs in zip(one.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(mine, theirs, f"step {t}")
        assert one.final_observations.keys() == other.final_observations.keys()
        for i, final in one.final_observations.items():
            np.testing.assert_array_equal(final, other.final_observations[i])
        ends += len(one.final_observations)
    return ends


def recorded(env, steps, seed=0):
    """Return a sequence of actions (steps, N)."""
    return np.random.default_rng(seed).integers(env.single_action_space.n, size=(steps, env.num_envs))


@pytest.mark.parametrize(
    "name, settings",
    [("Breakout", {}), ("SpaceInvaders", {"max_frames": 400, "fire_reset": False})],  # games that end, games cut off
)
def test_native_pictures_are_those_of_gymnasiums_wrappers(game, name, settings):
    native, wrapped = (game(name, backend=backend, noop_max=0, **settings) for backend in ("auto", "sync"))
    assert native.single_observation_space == wrapped.single_observation_space
    assert native.single_action_space == wrapped.single_action_space
    ends = same_game(native, wrapped, recorded(native, 250), [[5, 6], [5, 6]])
    assert ends >= (2 if settings else 1)


def test_sticky_actions_stick_alike(game):
    # Gymnasium's environment draws the emulator's seed from its own; a signed one below 0 is none to the native one
    seeds = [s for s in range(20) if np.random.SeedSequence(s).generate_state(2)[1] < 2**31][:2]
    emulators = [int(np.random.SeedSequence(s).generate_state(2)[1]) for s in seeds]
    settings = {"noop_max": 0, "repeat_action_probability": 0.25, "frame_skip": 2, "frame_stack": 3, "screen_size": 64}
    settings |= {"full_action_space": True}
    native, wrapped = game("Pong", **settings), game("Pong", backend="sync", **settings)
    assert native.single_observation_space.shape == (3, 64, 64) and native.single_action_space.n == 18
    same_game(native, wrapped, recorded(native, 120), [emulators, seeds])
    smooth = game("Pong", **{**settings, "repeat_action_probability": 0.0})
    with pytest.raises(AssertionError):
        same_game(smooth, wrapped, recorded(native, 120), [emulators, seeds])


def test_envpools_pictures_differ_in_the_padding_of_the_first_ones_only(game):
    native, pool = game("Breakout", noop_max=0), game("Breakout", backend="envpool", noop_max=0)
    same_game(native, pool, recorded(native, 120), [[5, 6], [5, 6]], padded_alike=False)


def test_each_native_copy_follows_its_own_seed(game):
    def play_out(seeds):
        env = game("Breakout", 3)
        first, _ = env.reset(seed=seeds)
        frames = [first, *(env.step(actions)[0] for actions in np.repeat(recorded(env, 20)[:, :1], 3, 1))]
        return np.stack(frames)

    shown, moved = play_out([7, 8, 2**40]), play_out([8, 7, 9])
    np.testing.assert_array_equal(shown[:, 0], moved[:, 1])
    np.testing.assert_array_equal(shown[:, 1], moved[:, 0])
    assert (shown[:, 0] != shown[:, 1]).any()


def test_a_native_game_does_not_change_other_vector_environments(game):
    before = dict(VectorEnv.metadata)
    assert game("Pong").metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert VectorEnv.metadata == before


def test_a_game_goes_on_exactly_where_it_was_saved(game):
    played, restored = (with_lessons(game("Breakout", backend="sync", max_frames=400), BREAKOUT) for _ in range(2))
    played.reset(seed=[1, 2])
    restored.reset(seed=[3, 4])
    actions = recorded(played, 190)
    for action in actions[:70]:
        played.step(action)
    state, reason = get_env_state(played)
    assert state is not None, reason
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    set_env_state(restored, torch.load(file, weights_only=True))
    for action in actions[70:]:
        for mine, theirs in zip(played.step(action)[:4], restored.step(action)[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(played.lives, restored.lives)


def test_the_native_emulators_keep_their_state_to_themselves(game):
    state, reason = get_env_state(with_lessons(game("Pong"), EnvConfig(id="ALE/Pong-v5")))
    assert state is None and "ALEVectorInterface" in reason


def test_a_state_without_the_action_that_may_stick_is_none(game):
    state, reason = get_env_state(game("Pong", backend="sync", repeat_action_probability=0.25))
    assert state is None and "sticky actions" in reason


BREAKOUT = EnvConfig(id="ALE/Breakout-v5")


class Scripted(VectorEnv):
    """One copy that plays a script of (reward, terminated, truncated, lives), SAME_STEP."""

    def __init__(self, script):
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.script, self.num_envs, self.t = script, 1, 0
        self.single_observation_space, self.single_action_space = spaces.Box(0, 9, (1,)), spaces.Discrete(2)
        self.observation_space, self.action_space = spaces.Box(0, 9, (1, 1)), spaces.MultiDiscrete([2])

    def reset(self, *, seed=None, options=None):
        return np.zeros((1, 1), np.float32), {"lives": np.array([3])}

    def step(self, actions):
        reward, terminated, truncated, lives = self.script[self.t]
        self.t += 1
        infos = {"lives": np.array([lives]), "final_obs": np.ones((1, 1), np.float32)}
        ends = np.array([terminated]), np.array([truncated])
        return np.ones((1, 1), np.float32), np.array([float(reward)]), *ends, infos


SCRIPT = [
    (7, False, False, 3),
    (0, False, False, 2),  # a life is lost
    (-4, False, False, 2),
    (2, True, False, 3),  # the game is lost, the count is the next game's
    (1, False, False, 3),
    (0, False, True, 2),  # cut off: no termination, whatever the count
    (5, False, False, 2),
    (0, False, False, 0),  # the last life: the game goes on for some frames
    (3, True, False, 0),
]


def test_a_rollout_holds_what_is_learnt_from_and_the_episodes_hold_scores():
    env = AtariLessons(Scripted(SCRIPT), AtariConfig())
    rollout = stream(env, linear_policy(env, weight=0.5), 9, 0.99, 0.95).next_rollout()
    assert rollout.rewards[:, 0].tolist() == [1, 0, -1, 1, 1, 0, 1, 0, 1]
    assert rollout.terminations[:, 0].nonzero()[:, 0].tolist() == [1, 3, 8]
    assert rollout.truncations[:, 0].nonzero()[:, 0].tolist() == [5]
    assert rollout.episodes.returns.tolist() == [5.0, 1.0, 8.0] and rollout.episodes.lengths.tolist() == [4, 2, 3]


def test_both_lessons_can_be_left_out():
    plain = AtariConfig(clip_rewards=False, terminate_on_life_loss=False)
    assert not isinstance(with_lessons(Scripted([]), EnvConfig(id="ALE/Pong-v5", atari=plain)), AtariLessons)
    assert not isinstance(with_lessons(Scripted([]), EnvConfig(id="CartPole-v1")), AtariLessons)
    env = AtariLessons(Scripted(SCRIPT), AtariConfig(clip_rewards=False))
    rollout = stream(env, linear_policy(env, weight=0.5), 9, 0.99, 0.95).next_rollout()
    assert rollout.rewards[:, 0].tolist() == [7, 0, -4, 2, 1, 0, 5, 0, 3] and rollout.terminations.sum() == 3
    env = AtariLessons(Scripted(SCRIPT), AtariConfig(terminate_on_life_loss=False))
    rollout = stream(env, linear_policy(env, weight=0.5), 9, 0.99, 0.95).next_rollout()
    assert rollout.rewards.abs().max() == 1 and rollout.terminations.sum() == 2


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize("backend", ["auto", "sync", "envpool"])
def test_training_learns_from_lessons_and_reports_whole_games(game, backend):
    game("SpaceInvaders", 1, backend)  # skips where it is missing
    # games of 50 steps; in SpaceInvaders rewards are multiples of 5
    atari = {"max_frames": 400, "frame_skip": 8, "screen_size": 36, "noop_max": 0, "fire_reset": False}
    env = {"id": "ALE/SpaceInvaders-v5", "backend": backend, "atari": atari}
    data = RolloutDataModule(env, 2, 120, rollouts_per_epoch=1, evaluation={"episodes": 2, "num_envs": 1}, seed=1)
    policy = {"shared_trunk": True, "hidden_sizes": []}
    update = {"minibatch_size": 120, "epochs": 1}
    model = PPO(data.observation_space, data.action_space, update=update, policy=policy)
    seen = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch)

    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[Keep()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    (rollout,) = seen
    assert rollout.observations.dtype == torch.uint8
    assert set(rollout.rewards.unique().tolist()) <= {0.0, 1.0} and rollout.rewards.sum() >= 1
    returns, lengths = rollout.episodes.returns, rollout.episodes.lengths
    assert lengths.tolist() == [50] * 4
    assert returns.sum() >= 5 and (returns % 5 == 0).all()
    assert (
        trainer.callback_metrics["eval/length_mean"] == 50 and trainer.callback_metrics["eval/return_mean"] % 2.5 == 0
    )


def test_evaluation_plays_on_when_a_life_is_lost(game):
    env = game("Breakout", 1, max_frames=2000)
    torch.manual_seed(0)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    episodes = play(policy, env, 1, seeds=[3], deterministic=False)
    assert episodes.lengths[0] > 100  # five lives last longer than one, 20 to 40 steps


def test_one_section_says_it_for_all_backends(game):
    with pytest.raises(ConfigError, match=r"env.kwargs.frameskip: set env.atari.frame_skip"):
        make_vector_env("ALE/Pong-v5", 1, kwargs={"frameskip": 2})
    with pytest.raises(ConfigError, match=r"env.atari.frame_skip: must be at least 1, got 0"):
        load([], ["env.atari.frame_skip=0"])
    assert "noop_max: 30" in to_yaml(load([], []))
    assert as_section(EnvConfig, {"atari": {"noop_max": 5}}, "env").atari.noop_max == 5
