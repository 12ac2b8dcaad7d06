"""CartPole and Pendulum in torch: the same numbers as Gymnasium's, whatever the number of copies."""

import gymnasium
import numpy as np
import pytest
import torch

from lightning_ppo.envs import get_env_state, set_env_state
from lightning_ppo.envs.stagger import is_staggered
from lightning_ppo.envs.torch_envs import TorchCartPole, TorchPendulum
from lightning_ppo.support.errors import ConfigError
from tests.kit.envs import make_vector_env

CASES = [("CartPole-v1", TorchCartPole), ("Pendulum-v1", TorchPendulum)]


def random_actions(kind: type, num_envs: int, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind is TorchCartPole:
        return torch.randint(2, (steps, num_envs), generator=generator)
    return torch.rand(steps, num_envs, 1, generator=generator) * 6.0 - 3.0  # beyond the bounds of +-2, too


@pytest.mark.parametrize(("env_id", "kind"), CASES)
def test_dynamics_are_those_of_gymnasium(env_id, kind):
    num_envs, steps = 16, 230  # beyond Pendulum's time limit of 200
    ours = kind(num_envs, dtype=torch.float64)
    ours.reset(seed=3)
    theirs = [gymnasium.make(env_id, disable_env_checker=True) for _ in range(num_envs)]
    for env, state in zip(theirs, ours.state, strict=True):
        env.reset(seed=0)
        env.unwrapped.state = state.numpy().copy()
    ends = 0
    for actions in random_actions(kind, num_envs, steps):
        observations, rewards, terminations, truncations, infos = ours.step(actions)
        for i, env in enumerate(theirs):
            seen, reward, terminated, truncated, _ = env.step(actions[i].numpy())
            np.testing.assert_allclose(infos["final_obs"][i].numpy(), seen, rtol=1e-6, atol=1e-6)
            assert rewards[i].item() == pytest.approx(float(reward), rel=1e-6, abs=1e-6)
            assert (bool(terminations[i]), bool(truncations[i])) == (terminated, truncated)
            if terminated or truncated:
                ends += 1
                env.reset()
                env.unwrapped.state = ours.state[i].numpy().copy()
                np.testing.assert_allclose(observations[i].numpy(), ours.observe(ours.state)[i].numpy())
            else:
                np.testing.assert_array_equal(observations[i].numpy(), infos["final_obs"][i].numpy())
    assert ends >= num_envs


def test_time_limit_of_cartpole_and_its_first_episodes():
    env = TorchCartPole(64, max_episode_steps=8)
    env.stagger = True
    env.reset(seed=0)
    lengths, first = torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    for t in range(24):
        # alternating pushes keep the pole up for 8 steps
        _, _, terminations, truncations, _ = env.step(torch.full((64,), t % 2))
        lengths += 1
        assert not terminations.any()
        later = truncations & (first > 0)
        assert (lengths[later] == 8).all()
        first = torch.where(truncations & (first == 0), lengths, first)
        lengths[truncations] = 0
    assert set(first.tolist()) == set(range(1, 9))


@pytest.mark.parametrize("kind", [TorchCartPole, TorchPendulum])
def test_the_final_observation_is_that_of_the_episode_that_ends(kind):
    env = kind(4, max_episode_steps=3)
    env.reset(seed=0)
    for actions in random_actions(kind, 4, 3):
        last = env.observe(env.advance(env.state, actions)[0])
        observations, _, _, truncations, infos = env.step(actions)
    assert truncations.all()
    assert torch.equal(infos["final_obs"], last)
    assert torch.equal(observations, env.observe(env.state)) and not torch.isclose(observations, last).all(1).any()


@pytest.mark.parametrize("kind", [TorchCartPole, TorchPendulum])
def test_episodes_start_within_gymnasiums_bounds(kind):
    env = kind(4096)
    env.reset(seed=1)
    bounds = torch.tensor([0.05] * 4 if kind is TorchCartPole else [torch.pi, 1.0])
    reach = env.state.abs().amax(0) / bounds
    assert (reach <= 1.0).all() and (reach > 0.99).all()
    torch.testing.assert_close(env.state.mean(0) / bounds, torch.zeros_like(bounds), atol=0.05, rtol=0.0)


@pytest.mark.parametrize("kind", [TorchCartPole, TorchPendulum])
def test_state_can_be_saved_and_restored(kind):
    actions = random_actions(kind, 5, 60)

    def play(env, rows):
        return [torch.cat([x.flatten() for x in env.step(a)[:4]]) for a in rows]

    env = make_vector_env(f"{kind.__module__}:{kind.__name__}", 5, stagger=True)
    assert is_staggered(env) and isinstance(env, kind)
    env.reset(seed=[7, 8])
    play(env, actions[:20])
    state, reason = get_env_state(env)
    assert reason == ""
    expected = play(env, actions[20:])
    other = make_vector_env(f"{kind.__module__}:{kind.__name__}", 5, stagger=True)
    other.reset(seed=0)
    set_env_state(other, state)
    assert all(torch.equal(a, b) for a, b in zip(play(other, actions[20:]), expected, strict=True))


def test_seeds_decide_everything():
    def first(seed):
        return TorchPendulum(3).reset(seed=seed)[0]

    assert torch.equal(first(5), first([5, 6, 7]))
    assert not torch.equal(first(5), first(6))


def test_tensors_of_an_environment_that_share_memory_are_not_half_restored():
    env = TorchCartPole(2)
    env.reset(seed=0)
    env.position = env.state[:, 0]
    state, reason = get_env_state(env)
    assert state is None
    assert reason == "TorchCartPole.position shares memory with TorchCartPole.state"


def test_a_vector_environment_has_no_copies_to_watch_over():
    with pytest.raises(ConfigError, match=r"env\.backend: .*TorchCartPole is a vector environment"):
        make_vector_env("lightning_ppo.envs.torch_envs:TorchCartPole", 2, backend="sync")
