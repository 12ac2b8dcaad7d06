"""Recorded functions: on the CPU with an imitation of CUDA graphs that reads and writes the memory a real one would."""

import gc
import weakref

import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.acting import RecordedActing
from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.device_storage import DeviceStorage
from lightning_ppo.envs import torch_envs
from lightning_ppo.envs.state import get_env_state
from lightning_ppo.envs.torch_envs import TorchCartPole
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.speed import graphs
from lightning_ppo.speed.graphs import Recorded
from tests.kit.devices import Looks
from tests.kit.training import Heavier, Weighted, make_pair, make_trainer

DEVICES = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
"""Where there is no GPU, the imitation takes the same roads on the CPU."""


def test_results_of_replays_are_the_callers_own(imitation):
    double = Recorded(lambda x, y: (x * 2.0, None if y is None else y + 1))
    first = double(torch.tensor([1.0]), None)
    second = double(torch.tensor([5.0]), None)
    assert (first[0].item(), second[0].item(), first[1]) == (2.0, 10.0, None)
    assert len(imitation) == 1


def test_a_tensor_that_moved_is_recorded_anew(imitation):
    weights = [torch.tensor([2.0])]
    scaled = Recorded(lambda x: x * weights[0], lambda: weights)
    scaled.refresh()
    assert scaled(torch.tensor([3.0])).item() == 6.0
    weights[0].fill_(5.0)
    scaled.refresh()
    assert scaled(torch.tensor([3.0])).item() == 15.0 and len(imitation) == 1
    weights[0] = torch.tensor([7.0])
    scaled.refresh()
    assert scaled(torch.tensor([3.0])).item() == 21.0 and len(imitation) == 2


def test_other_shapes_are_refused(imitation):
    double = Recorded(lambda x: x * 2.0)
    double(torch.ones(3))
    with pytest.raises(
        ValueError, match=r"recorded with a tensor \(\(3,\), torch.float32\), called with \(\(1,\), torch.f"
    ):
        double(torch.ones(1))
    with pytest.raises(ValueError, match=r"torch.float32\), called with \(\(3,\), torch.int64\)"):
        double(torch.ones(3, dtype=torch.int64))


def train(env: str, compile: bool, device: str = "cpu", **policy: object) -> tuple[torch.Tensor, list[float]]:
    pl.seed_everything(3, verbose=False)
    kwargs = {"device": device} if "torch_envs" in env else {}
    data = RolloutDataModule(env, num_envs=4, num_steps=16, rollouts_per_epoch=3, env_kwargs=kwargs)
    model = PPO(
        data.observation_space,
        data.action_space,
        update={"epochs": 2, "minibatch_size": 32, "recompute_advantages": True},
        policy=policy,
        compile=compile,
    )
    make_trainer(max_epochs=1, accelerator="cpu" if device == "cpu" else "cuda").fit(model, data)
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()]), list(model.recent_returns)


@pytest.mark.parametrize(
    ("env", "policy"),
    [
        ("lightning_ppo.envs.torch_envs:TorchCartPole", {}),
        ("lightning_ppo.envs.torch_envs:TorchPendulum", {"core": "lstm", "core_size": 4}),
        ("lightning_ppo.envs.torch_envs:TorchPendulum", {"core": "transformer", "core_size": 4}),
        ("Pendulum-v1", {"activation": "gelu"}),  # does not act in NumPy
    ],
    ids=["mlp", "lstm", "transformer", "numpy"],
)
def test_recorded_acting_and_updates_learn_the_same(imitation, monkeypatch, env, policy):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    expected, returns = train(env, False, **policy)
    assert not imitation
    found, found_returns = train(env, True, **policy)
    # acting (again once the update has laid the parameters out in one buffer) and the gradients
    assert len(imitation) == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found_returns == pytest.approx(returns)


@pytest.mark.compiled
def test_a_recorded_loss_sees_what_a_callback_changes_between_iterations(imitation):
    data = RolloutDataModule("Pendulum-v1", num_envs=2, num_steps=16, rollouts_per_epoch=4)
    spaces = data.observation_space, data.action_space
    model = Weighted(*spaces, update={"epochs": 2, "minibatch_size": 16}, policy={"hidden_sizes": [4]}, compile=True)
    heavier = Heavier(1.0, 0.0, 1.0, 0.0)
    make_trainer(callbacks=[heavier]).fit(model, data)
    assert heavier.seen == pytest.approx([1.0, 2.0, 2.0, 3.0])


def test_a_policy_that_cannot_be_recorded_acts_as_it_is_with_one_line(monkeypatch):
    def refuse(function, inputs, before):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")

    monkeypatch.setattr(graphs, "record", refuse)
    env = TorchCartPole(4)
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    rollouts = []
    for recorded in (None, RecordedActing(policy)):
        collecting = Collector(env, policy, 8, torch.Generator().manual_seed(0), [3])
        collecting.recorded = recorded
        if recorded is None:
            rollouts.append(collecting.collect())
            continue
        with pytest.warns(UserWarning, match=r"acting cannot be recorded .*\(operation not permitted .*\)") as warned:
            rollouts.append(collecting.collect())
        assert len(warned) == 1 and len(str(warned[0].message).splitlines()) == 1
    assert torch.equal(rollouts[0].actions, rollouts[1].actions)


@pytest.mark.compiled
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("env", ["lightning_ppo.envs.torch_envs:TorchCartPole", "Pendulum-v1"])
def test_compiled_and_recorded_training_learns_the_same(request, env, device):
    if device == "cpu":
        request.getfixturevalue("imitation")
    expected, _ = train(env, False, device)
    found, _ = train(env, True, device)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_steps_of_environments_in_torch_are_recorded(imitation, monkeypatch):
    def play(env):
        observations, _ = env.reset(seed=4)
        seen, actions = [observations], torch.zeros(6, dtype=torch.int64)
        for step in range(60):
            actions.copy_(torch.arange(6) % 2 if step % 3 else torch.arange(6) % 3 == 0)  # in place
            observations, *ends, infos = env.step(actions)
            seen += [observations, *ends, infos["final_obs"]]
        return torch.cat([x.double().flatten() for x in seen]), get_env_state(env)

    expected, (state, _) = play(TorchCartPole(6, max_episode_steps=25))
    monkeypatch.setattr(torch_envs, "can_record", lambda device: True)
    found, (found_state, reason) = play(TorchCartPole(6, max_episode_steps=25))
    assert len(imitation) == 1 and reason == ""
    assert torch.equal(found, expected)
    assert str(found_state) == str(state)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_waits_for_the_device_while_collecting(monkeypatch, device):
    """Not before the rollout is complete; on a GPU, CUDA itself raises where the host waits for it."""
    env = TorchCartPole(64, device=device)
    policy = ActorCritic(env.single_observation_space, env.single_action_space).to(device)
    collecting = Collector(env, policy, 8, torch.Generator(device).manual_seed(0), [0])
    finish, looks, waited = DeviceStorage.finish, Looks(), []

    def finishing(storage):
        waited.append(looks.count)
        allow("default")
        return finish(storage)

    allow = torch.cuda.set_sync_debug_mode if device == "cuda" else lambda mode: None
    monkeypatch.setattr(DeviceStorage, "finish", finishing)
    allow("error")
    try:
        with looks:
            rollout = collecting.collect()
    finally:
        allow("default")
    assert waited == [0]
    assert rollout.observations.device.type == device


def test_a_recording_lets_go_of_the_batch_after_an_iteration(imitation, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model, data = make_pair(rollouts_per_epoch=2, compile=True)
    kept, alive = [], []
    backward = model._backward

    def watched(batch, rows, scale):
        if not kept or kept[-1]() is not batch.advantages:
            kept.append(weakref.ref(batch.advantages))
        return backward(batch, rows, scale)

    def collected(*_):
        gc.collect()
        alive.append([reference() is not None for reference in kept])

    model._backward = watched
    model.on_train_batch_start = collected
    make_trainer().fit(model, data)
    assert len(kept) == 2 and alive == [[], [False]]
