"""Networks of the user's own by class path, what is said where they do not fit, and a critic that sees more."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.interop.export import Deployed, export
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.rollout.shapes import select
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError
from tests.kit.spaces import ARM, MIXED, Anything, agent_of, collected, flattened, observed
from tests.kit.training import make_trainer

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
SEEN = spaces.Dict({"joints": VECTOR, "mode": spaces.Discrete(4)})


class Joints(nn.Module):
    """An encoder: looks at one entry of a Dict alone."""

    def __init__(self, space: spaces.Dict, size: int = 5) -> None:
        super().__init__()
        self.num_features = size
        self.layer = nn.Linear(space["joints"].shape[0], size)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.layer(inputs["joints"])


class Leaky(nn.Module):
    """A core: a leaky sum of the past."""

    def __init__(self, num_inputs: int, rate: float = 0.5) -> None:
        super().__init__()
        self.num_features = self.state_size = num_inputs
        self.rate = rate
        self.scale = nn.Parameter(torch.ones(num_inputs))

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for step in x:
            states = self.rate * states + self.scale * step
            outputs.append(states)
        return torch.stack(outputs), states


class Whole(nn.Module):
    """An actor-critic: outputs and values from one layer."""

    def __init__(self, space: spaces.Dict, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(space["joints"].shape[0], num_outputs + 1)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = self.layer(inputs["joints"])
        return outputs[:, :-1], outputs[:, -1]


HERE = "tests.policy.test_networks."
OWN: dict[str, dict[str, Any]] = {
    "encoder": {"encoder": {"class_path": f"{HERE}Joints", "init_args": {"size": 7}}},
    "core": {"core": f"{HERE}Leaky"},
    "encoder and core": {
        "encoder": f"{HERE}Joints",
        "core": {"class_path": f"{HERE}Leaky", "init_args": {"rate": 0.9}},
    },
    "network": {"network": f"{HERE}Whole"},
}


@pytest.mark.parametrize("kind", OWN)
def test_networks_of_ones_own_train_and_come_back_from_a_checkpoint(kind: str, tmp_path: Any) -> None:
    env = SyncVectorEnv([lambda: Anything(SEEN, MIXED, True)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    data = RolloutDataModule(env, num_steps=8, rollouts_per_epoch=2)
    model = PPO(SEEN, MIXED, update={"minibatch_size": 16, "epochs": 2}, policy={"hidden_sizes": [8], **OWN[kind]})
    before = [p.detach().clone() for p in model.parameters()]
    trainer = make_trainer()
    trainer.fit(model, data)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    again = PPO.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    observations = observed(SEEN, 6)
    assert torch.equal(
        again.policy.value(observations, again.policy.initial_states(6), _none_starts(again, 6)),
        (model.policy.value(observations, model.policy.initial_states(6), _none_starts(model, 6))),
    )


def _none_starts(model: PPO, rows: int) -> Tensor | None:
    return torch.zeros(rows, dtype=torch.bool) if model.policy.state_size else None


def test_settings_reach_a_network_of_ones_own() -> None:
    agent = ActorCritic(SEEN, ARM, PolicyConfig([8], **OWN["encoder"]))
    actor, critic = agent.network.actor_trunk, agent.network.critic_trunk
    assert actor.encoder.num_features == 7 and actor.mlp.num_features == 8
    assert actor.encoder is not critic.encoder
    observations = observed(SEEN, 6)
    other = {**observations, "mode": (observations["mode"] + 1) % 4}
    assert torch.equal(agent.distribution(observations), agent.distribution(other))


# ---------------------------------------------------------------- what does not fit


class Sizeless(Joints):
    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space)
        del self.num_features


class Boastful(Joints):
    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space)
        self.num_features = 9


class Stateless(Leaky):
    def __init__(self, num_inputs: int) -> None:
        super().__init__(num_inputs)
        self.state_size = 0


class Hasty(Leaky):
    """Takes one step of each sequence."""

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        return x[:1], states


class Forgetful(Leaky):
    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        return x, states[:, :2]


class Columns(Whole):
    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs, values = super().forward(inputs)
        return outputs, values.unsqueeze(1)


class Narrow(Whole):
    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs, values = super().forward(inputs)
        return outputs[:, 1:], values


class Actor(Whole):
    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return super().forward(inputs)[0]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("encoder", "Sizeless", "policy.encoder: Sizeless.num_features must be a number of at least 1, got None"),
        ("encoder", "Boastful", "policy: the network fails on 6 observations: RuntimeError: mat1 and mat2"),
        ("encoder", "Missing", "policy.encoder: cannot import"),
        ("encoder", "SEEN", "policy.encoder: .* is no torch.Module"),
        ("core", "Stateless", "policy.core: Stateless.state_size must be a number of at least 1, got 0"),
        pytest.param(*("core", "Hasty", "the network fails on 6 observations: IndexError"), marks=pytest.mark.shortcut),
        ("core", "Forgetful", r"gives states of shape \(2, 4\), expected \(2, 16\)"),
        ("network", "Columns", r"gives values of shape \(6, 1\), expected \(6,\)"),
        ("network", "Narrow", r"gives outputs of shape \(6, 1\), expected \(6, 2\)"),
        ("network", "Actor", "too many values to unpack"),
    ],
)
def test_a_network_that_does_not_fit_is_explained_in_one_line(kind: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ActorCritic(SEEN, ARM, PolicyConfig([8], **{kind: HERE + name}))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- a critic that sees more

PRIVILEGED = spaces.Dict({"joints": VECTOR, "mass": spaces.Box(0.0, 9.0, (2,), np.float32), "mode": spaces.Discrete(4)})


@pytest.mark.parametrize("distribution", ["gaussian", "gsde"])
def test_the_actor_does_not_depend_on_what_the_critic_alone_sees(distribution: str) -> None:
    agent = agent_of(PRIVILEGED, ARM, distribution, critic_observation_keys=["mass"])
    observations = observed(PRIVILEGED, 7)
    heavier = {**observations, "mass": observations["mass"] + 3.0}
    assert torch.equal(agent.distribution(observations), agent.distribution(heavier))
    assert not torch.allclose(agent.value(observations), agent.value(heavier))

    # nor does any gradient reach it
    mass = observations["mass"].clone().requires_grad_()
    agent.distribution({**observations, "mass": mass}).sum().backward()
    assert mass.grad is None
    agent.value({**observations, "mass": mass}).sum().backward()
    assert mass.grad is not None and (mass.grad.abs().sum(1) > 0.0).all()

    # a robot that cannot weigh itself acts as it did in the simulation
    known = {key: observations[key] for key in ("joints", "mode")}
    assert torch.equal(agent.predict(known)[0], agent.predict(observations)[0])


def test_a_rollout_of_an_asymmetric_critic_has_ratio_1() -> None:
    agent = agent_of(PRIVILEGED, MIXED, "beta", critic_observation_keys=["mass", "mode"])
    batch = flattened(collected(agent, PRIVILEGED, MIXED, masked=True))
    minibatch = select(batch, torch.arange(14, -1, -1))
    now = agent.evaluate(minibatch)
    assert ((now.log_probs - minibatch.log_probs).exp() - 1.0).abs().max() <= 1e-5
    torch.testing.assert_close(now.values, minibatch.values, rtol=1e-4, atol=1e-5)
    # its normaliser takes in the entry that the actor does not see
    collector = Collector(
        SyncVectorEnv([lambda: Anything(PRIVILEGED, MIXED)], autoreset_mode=AutoresetMode.SAME_STEP),
        agent,
        9,
        torch.Generator(),
        [1],
    )
    before = agent.inputs.normalizers["mass"].count.item()
    rollout = collector.collect()
    agent.update_statistics(rollout, lambda x: x)
    assert agent.inputs.normalizers["mass"].count.item() == before + 9 + len(rollout.episodes.returns)


def test_an_exported_file_asks_for_nothing_that_the_critic_alone_sees(tmp_path: Any) -> None:
    agent = agent_of(PRIVILEGED, ARM, "gaussian", critic_observation_keys=["mass"])
    deployed = Deployed(agent, PRIVILEGED, ARM)
    assert deployed.inputs == ["observations.joints", "observations.mode"]
    run = export(deployed, tmp_path / "policy.pt2", "torch")
    observations = observed(PRIVILEGED, 5)
    found = run({f"observations.{key}": observations[key] for key in ("joints", "mode")})
    torch.testing.assert_close(found["actions"], agent.predict(observations)[0])


@pytest.mark.parametrize("keys", [["weight"], ["joints", "mass", "mode"]], ids=str)
def test_keys_of_the_critic_must_be_some_of_the_entries(keys: list[str]) -> None:
    with pytest.raises(ConfigError, match="critic_observation_keys: expected some of the observation's entries"):
        ActorCritic(PRIVILEGED, ARM, PolicyConfig(critic_observation_keys=keys))


def test_keys_of_the_critic_need_a_dict_and_a_critic_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"expected some of the observation's entries \[\]"):
        ActorCritic(VECTOR, ARM, PolicyConfig(critic_observation_keys=["mass"]))
    with pytest.raises(ConfigError, match="needs a critic of its own"):
        PolicyConfig(critic_observation_keys=["mass"], shared_trunk=True)
