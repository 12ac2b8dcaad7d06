"""Memory: states, starts and sequences, from acting over storing and cutting to learning, saving and playing."""

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.networks import CustomNetwork
from lightning_ppo.policy.recurrence import RecurrentCore, run_core, run_cores
from lightning_ppo.policy.scoring import divergences, rollout_values
from lightning_ppo.rollout.shapes import Episodes, Rollout, select, shuffled_indices
from lightning_ppo.settings.algorithm import NormalizeConfig, RolloutConfig, UpdateConfig, resolve_sequence_length
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.packing import unpack
from lightning_ppo.update.objectives import kl_k3
from tests.kit.envs import Count, make_vector_env, vector
from tests.kit.memory import KINDS, TRANSFORMER, Latch, make_core, make_pair, states_of, step_by_step, whole
from tests.kit.resuming import assert_same_agent
from tests.kit.training import Recording, make_trainer

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


# ---------------------------------------------------------------- the core


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "envs", "inputs"), [(5, 1, 1), (27, 64, 10), (37, 64, 42), (37, 1, 10)])
@pytest.mark.parametrize("dones", ["random", "periodic", "never", "always"])
def test_sequences_equal_single_steps(kind, steps, envs, inputs, dones):
    core = make_core(kind, inputs)
    starts = {
        "random": torch.rand(steps, envs) < 0.2,
        "periodic": (torch.arange(steps) % 5 == 0).unsqueeze(1).expand(-1, envs),
        "never": torch.zeros(steps, envs, dtype=torch.bool),
        "always": torch.ones(steps, envs, dtype=torch.bool),
    }[dones]
    x, states = torch.randn(steps, envs, inputs), states_of(core, envs)
    outputs, _ = step_by_step(core, x, states, starts)
    assert torch.allclose(whole(core, x, states, starts), outputs, atol=4e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_resets_one_environment_and_leaves_its_neighbour(kind):
    core = make_core(kind, 3)
    x, states = torch.randn(2, 3), states_of(core, 2)
    fresh, _ = run_core(core, x, torch.zeros_like(states), torch.zeros(2, dtype=torch.bool))
    going_on, _ = run_core(core, x, states, torch.zeros(2, dtype=torch.bool))
    mixed, _ = run_core(core, x, states, torch.tensor([True, False]))
    assert torch.allclose(mixed, torch.stack((fresh[0], going_on[1])), atol=1e-6)
    assert not torch.allclose(fresh[0], going_on[0], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaks_from_one_episode_into_the_next(kind):
    core = make_core(kind, 3)
    first, second = torch.randn(4, 1, 3, requires_grad=True), torch.randn(5, 1, 3)
    states = states_of(core, 1).requires_grad_()
    starts = torch.zeros(9, 1, dtype=torch.bool)
    starts[4] = True
    packed = whole(core, torch.cat((first, second)), states, starts)
    alone = whole(core, second, states_of(core, 1, 100.0), torch.arange(5).unsqueeze(1) == 0)
    assert torch.allclose(packed[4:], alone, rtol=1e-5, atol=1e-6)
    before, past = torch.autograd.grad(packed[4:].square().sum(), (first, states), retain_graph=True)
    assert before.count_nonzero() == 0 and past.count_nonzero() == 0
    seen = torch.autograd.grad(packed[:4].square().sum(), states)[0].count_nonzero()
    assert seen == core.state_size - (kind == "transformer")  # which counts the steps in memory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [(4, 4), (4, 3)])
def test_cores_side_by_side_and_cut_into_pieces_are_cores_alone(kind, inputs):
    torch.manual_seed(0)
    cores = [make_core(kind, count, 6) for count in inputs]
    xs = [torch.randn(24, count, requires_grad=True) for count in inputs]
    states = torch.cat([states_of(core, 3) for core in cores], -1).requires_grad_()
    starts = torch.rand(24) < 0.25

    class Own(nn.Module):  # what is not built in, and every core on another device, is cut and padded
        def __init__(self, core: nn.Module) -> None:
            super().__init__()
            self.core, self.num_features, self.state_size = core, core.num_features, core.state_size

        def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            return self.core(x, states)

    own = zip(cores, xs, states.chunk(2, -1), strict=True)
    ways = [
        [run_core(core, x, state, starts)[0] for core, x, state in own],
        run_cores(cores, xs, states, starts)[0],
        run_cores([Own(core) for core in cores], xs, states, starts)[0],
    ]
    wanted = [*xs, states, *(parameter for core in cores for parameter in core.parameters())]
    weights = torch.randn(24, 12)
    gradients = [torch.autograd.grad((torch.cat(way, 1) * weights).sum(), wanted) for way in ways]
    assert not torch.allclose(*ways[0], atol=1e-2)
    for other in (1, 2):
        torch.testing.assert_close(ways[other], ways[0], rtol=0.0, atol=1e-6)
        torch.testing.assert_close(gradients[other], gradients[0], rtol=1e-4, atol=1e-5)


def test_a_nan_of_a_former_episode_ends_with_it():
    """In a GRU; LSTMs lead the state over a blank step, and observations that are not finite are refused before."""
    core = make_core("gru", 3)
    x, states = torch.randn(4, 2, 3), torch.full((2, core.state_size), torch.nan)
    x[1] = torch.nan
    starts = torch.tensor([[True, True], [False, False], [True, True], [False, False]])
    outputs = whole(core, x, states, starts)
    assert outputs[[0, 2, 3]].isfinite().all() and outputs[1].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_one_core_is_none_of_the_others(kind):
    cores = [make_core(kind, 4) for _ in range(2)]
    (first, _), _ = run_cores(
        cores, [torch.randn(8, 4)] * 2, torch.randn(2, 2 * cores[0].state_size), torch.zeros(8, dtype=torch.bool)
    )
    weights = [next(core.parameters()) for core in cores]
    found = torch.autograd.grad(first.sum(), weights, allow_unused=True, create_graph=True)
    assert found[0].count_nonzero() > 0 and found[1] is None


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_never_kept_in_half_precision(kind):
    core = make_core(kind, 3)
    x, states, starts = torch.randn(4, 3), torch.randn(4, core.state_size), torch.ones(4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        assert run_core(core, x.bfloat16(), states, starts)[1].dtype == torch.float32


# ---------------------------------------------------------------- sequences and minibatches


def identifiable(steps: int, envs: int, ends: list[tuple[int, int]] = ()) -> Rollout:
    """Return a rollout in which every field of row (t, n) is 100 n + t; episodes end at `ends`."""
    code = torch.arange(steps).unsqueeze(1) + 100.0 * torch.arange(envs)
    starts = torch.zeros(steps, envs, dtype=torch.bool)
    starts[0] = True
    for t, env in ends:
        starts[t + 1, env] = True
    zeros = torch.zeros(steps, envs)
    return Rollout(
        observations={"vector": code.unsqueeze(-1), "image": code[..., None, None].expand(-1, -1, 2, 3).byte()},
        actions=code.long(),
        distribution=code.unsqueeze(-1),
        log_probs=code,
        values=code,
        next_values=zeros,
        boundary_observations=zeros[-1],
        boundary_rows=torch.arange(envs),
        rewards=zeros,
        terminations=zeros.bool(),
        truncations=zeros.bool(),
        valid=torch.ones(steps, envs, dtype=torch.bool),
        episodes=Episodes(torch.zeros(0), torch.zeros(0)),
        starts=starts,
        states=code.unsqueeze(-1).repeat(1, 1, 2),
        action_masks=(code.unsqueeze(-1) % 2 == torch.arange(2)),
        advantages=code,
        returns=code,
    )


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_minibatches_hold_whole_sequences_of_one_environment_with_its_own_state(length):
    batch = identifiable(8, 6, [(3, 0)]).flatten(length)
    indices = shuffled_indices(48, 16, torch.Generator().manual_seed(0), length)
    assert indices.shape == (3, 16) and sorted(indices.flatten().tolist()) == list(range(48))
    for rows in indices:
        minibatch = select(batch, rows)
        code = minibatch.log_probs
        sequences = code.view(-1, length)
        assert torch.equal(sequences, sequences[:, :1] + torch.arange(length))  # consecutive steps, one environment
        assert (sequences[:, 0] % 100 % length == 0).all()
        assert torch.equal(minibatch.states, sequences[:, :1].expand(-1, 2))  # the state before the first of them
        assert torch.equal(minibatch.observations["vector"].squeeze(-1), code)
        assert torch.equal(minibatch.observations["image"][:, 1, 2], code.byte())
        assert torch.equal(minibatch.actions, code.long())
        assert torch.equal(minibatch.distribution.squeeze(-1), code)
        for field in (minibatch.values, minibatch.advantages, minibatch.returns):
            assert torch.equal(field, code)
        assert torch.equal(minibatch.action_masks[:, 0], code % 2 == 0)
        assert torch.equal(minibatch.starts, (code % 100 == 0) | (code == 4))


@pytest.mark.shortcut
def test_pieces_of_a_minibatch():
    """6 envs x 8 steps, one episode of env 0 ends at step 3: envs 0 to 2 are four pieces, envs 3 to 5 three."""
    rollout = identifiable(8, 6, [(3, 0)])
    seen = []

    class Spy(nn.Module):
        state_size = 2

        def forward(self, x, states):
            seen.append((x, states))
            return x, states

    batch = rollout.flatten(8)
    for rows in (torch.arange(24), torch.arange(24, 48)):
        minibatch = select(batch, rows)
        x = minibatch.log_probs.unsqueeze(-1) + 1.0
        outputs, _ = run_core(Spy(), x, minibatch.states, minibatch.starts & (minibatch.log_probs % 100 > 0))
        assert torch.equal(outputs, x)  # cut and put together again
    (first, states), (second, _) = seen
    assert first.shape == (8, 4, 1) and second.shape == (8, 3, 1)
    assert first[:, :, 0].t().tolist() == [
        [1, 2, 3, 4, 0, 0, 0, 0],  # padded with zeros
        [5, 6, 7, 8, 0, 0, 0, 0],
        [*range(101, 109)],
        [*range(201, 209)],
    ]
    assert states[:, 0].tolist() == [0, 0, 100, 200]


@pytest.mark.parametrize("length", [1, 3, 6])
def test_unflatten_undoes_flatten(length):
    rollout = identifiable(6, 4)
    batch = rollout.flatten(length)
    assert torch.equal(rollout.unflatten(batch.values, length), rollout.values)
    assert torch.equal(rollout.unflatten(batch.observations["image"], length), rollout.observations["image"])


@pytest.mark.parametrize(
    ("num_steps", "minibatch_size", "length"),
    # the largest common divisor that leaves four sequences in a minibatch
    [(32, 64, 16), (256, 64, 16), (128, 2048, 128), (20, 100, 20), (32, 66, 2), (7, 64, 1), (16, 2, 1), (24, 96, 24)],
)
def test_default_sequence_length(num_steps, minibatch_size, length):
    assert resolve_sequence_length(num_steps, UpdateConfig(minibatch_size=minibatch_size), True) == length


@pytest.mark.parametrize(
    ("length", "recurrent", "message"),
    [
        (5, True, "update.sequence_length: 5 does not divide rollout.num_steps=32; 32 is the largest that fits"),
        (0, True, "update.sequence_length: 0 does not divide rollout.num_steps=32"),
        (8, False, "update.sequence_length: only a recurrent policy learns in sequences"),
    ],
)
def test_sequence_lengths_that_cannot_be(length, recurrent, message):
    with pytest.raises(ConfigError) as caught:
        resolve_sequence_length(32, UpdateConfig(sequence_length=length), recurrent)
    assert message in str(caught.value)


# ---------------------------------------------------------------- rollouts


def make_policy(env, kind="lstm", gain=3.0, **settings) -> ActorCritic:
    """Return a policy whose outputs and values depend on its memory."""
    settings = (TRANSFORMER if kind == "transformer" else {"core": kind, "core_size": 6}) | settings
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        PolicyConfig(hidden_sizes=[8], **settings),
        NormalizeConfig(observations=False, rewards=False),
    )
    for trunk in (policy.network.actor_trunk, policy.network.critic_trunk):
        for parameter in trunk.core.parameters():
            nn.init.normal_(parameter, std=0.5)
    nn.init.normal_(policy.network.actor_output.weight, std=gain)
    return policy


def make_collector(env, policy, num_steps) -> Collector:
    return Collector(env, policy, num_steps, torch.Generator().manual_seed(0), list(range(env.num_envs)))


def counters(mode: AutoresetMode, end: str = "trunc"):
    return vector([lambda n=n: Count(n, end) for n in (3, 4, 7)], mode)


def unrolled(policy: ActorCritic, episode: Tensor) -> Tensor:
    """Return the values (K,) of the observations of one episode (K, D), seen one after the other from its start."""
    states, values = torch.zeros(1, policy.state_size), []
    for number, seen in enumerate(episode):
        _, value, states = policy.network(seen.unsqueeze(0), states, torch.tensor([number == 0]))
        values.append(value)
    return torch.cat(values)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_values_and_bootstrap_values_are_those_of_the_whole_episode(mode, shared, kind):
    """Also of the final observation, seen with the state of its episode, and across the ends of rollouts."""
    env = counters(mode)
    policy = make_policy(env, kind, shared_trunk=shared)
    expected = unrolled(policy, torch.arange(9.0).unsqueeze(1))  # Count shows the steps since the reset
    collecting = make_collector(env, policy, 5)
    for _ in range(4):
        rollout = collecting.collect()
        step = rollout.observations.squeeze(-1).long()
        valid = rollout.valid
        assert torch.equal(rollout.starts[valid], step[valid] == 0)
        assert torch.allclose(rollout.values[valid], expected[step][valid], atol=1e-5)
        assert torch.allclose(rollout.next_values[valid], expected[step + 1][valid], atol=1e-5)
    assert (rollout.truncations & valid).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at_once", [8192, 10])
def test_sequence_evaluation_equals_acting(mode, kind, at_once, monkeypatch):
    monkeypatch.setattr("lightning_ppo.policy.scoring.EVALUATION_ROWS", at_once)
    env = counters(mode)
    policy = make_policy(env, kind)
    collecting = make_collector(env, policy, 12)
    for _ in range(2):
        rollout = collecting.collect()
        assert not rollout.states.requires_grad and not collecting.state.requires_grad
        rollout.advantages = rollout.returns = rollout.values
        for length in (1, 4, 12):
            now = policy.evaluate(rollout.flatten(length))
            for name in ("distribution", "log_probs", "values"):
                one, other = rollout.unflatten(getattr(now, name), length), getattr(rollout, name)
                assert torch.allclose(one[rollout.valid], other[rollout.valid], atol=1e-5), name
            assert divergences(policy, rollout.flatten(length)).abs().max() < 1e-5
            values, boundary = rollout_values(policy, rollout, length)
            assert torch.allclose(values, rollout.values, atol=1e-5)
            assert torch.allclose(boundary[:3], rollout.next_values[-1], atol=1e-5)
    assert rollout.starts[0].logical_not().any()
    assert rollout.states[0].abs().amax(-1).min() > 0.0  # memory crosses rollouts


def test_a_replaced_environment_starts_with_an_empty_memory():
    env = make_vector_env(
        "tests.kit.envs:Touchy", 2, backend="sync", kwargs={"kind": "raises", "at": 3}, max_restarts=9
    )
    policy = make_policy(env)
    rollout = make_collector(env, policy, 8).collect()
    replaced = ~rollout.valid
    assert replaced.any()
    failed, index = replaced.nonzero()[0].tolist()
    assert rollout.starts[failed + 1, index] and not rollout.starts[failed, index]
    assert rollout.truncations[failed - 1, index]
    with torch.no_grad():
        expected = unrolled(policy, rollout.observations[: failed + 1, index])
        fresh = unrolled(policy, rollout.observations[failed + 1 : failed + 2, index])
    assert torch.allclose(rollout.next_values[failed - 1, index], expected[-1], atol=1e-5)
    assert torch.allclose(rollout.values[failed + 1, index], fresh[0], atol=1e-5)


def test_recomputed_advantages_are_those_of_the_stream_before_any_step():
    env = counters(AutoresetMode.SAME_STEP)
    model = PPO(
        env.single_observation_space, env.single_action_space, policy={"core": "lstm"}, update={"minibatch_size": 12}
    )
    stream = RolloutStream(make_collector(env, model.policy, 12), RolloutConfig(), 1)
    rollout = stream.next_rollout()
    again = model._estimate_again(rollout)
    batch = rollout.flatten(model.sequence_length(12))
    assert torch.allclose(again.advantages, batch.advantages, atol=1e-4)
    assert torch.allclose(again.returns, batch.returns, atol=1e-4)
    assert torch.equal(again.states, batch.states)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("env", "policy", "precision", "tolerance"),
    [
        ("CartPole-v1", {}, "32-true", 1e-5),
        ("CartPole-v1", {"core": "gru", "shared_trunk": True}, "32-true", 1e-5),
        ("CartPole-v1", TRANSFORMER, "32-true", 1e-5),
        ("CartPole-v1", TRANSFORMER, "bf16-mixed", 2e-2),
        ("Pendulum-v1", {"distribution": "state_gaussian"}, "32-true", 1e-5),
        ("tests.kit.rich_envs:Guided", {}, "32-true", 1e-5),
        ("tests.kit.rich_envs:Guided", {"critic_observation_keys": ["side"]}, "32-true", 1e-5),
        ("CartPole-v1", {}, "bf16-mixed", 2e-2),
        ("CartPole-v1", {"core": "gru"}, "bf16-mixed", 2e-2),
    ],
)
def test_the_first_ratio_is_one(env, policy, precision, tolerance):
    model, data = make_pair(env, policy=policy)
    with torch.no_grad():
        model.policy.network.actor_output.weight.mul_(300.0)  # logits of about +-3, so that the test can fail
    make_trainer(precision=precision).fit(model, data)
    assert model.log_ratios[0].abs().max() <= tolerance
    assert kl_k3(model.reports[0].log_ratios).mean() <= tolerance
    assert len(model.log_ratios) == 2 and model.log_ratios[1].abs().max() > 1e-5  # the policy has moved since


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "adaptive_kl"},
        {"objective": "policy_gradient"},
        {"objective": "trpo"},
        {"loss_terms": ["lightning_ppo.update.loss_terms.ActionSmoothness"]},
        {"policy": {"dropout": 0.5}},
        {"policy": TRANSFORMER},
        {"policy": TRANSFORMER, "objective": "trpo"},
        {"update": {"recompute_advantages": True, "target_kl": 1.0}},
        pytest.param({"compile": True, "model": PPO}, marks=pytest.mark.compiled),
    ],
    ids=str,
)
def test_everything_trains_with_memory(settings):
    epochs = 1 if settings.get("objective") == "policy_gradient" else 2
    model, data = make_pair("tests.kit.rich_envs:Guided", epochs, **settings)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    make_trainer().fit(model, data)
    for name, parameter in model.policy.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name


def test_fisher_products_see_the_recurrent_weights():
    """The second derivative through the fused LSTM is that of central differences of the first."""
    torch.manual_seed(0)
    core = make_core("lstm", 3).double()
    x, states = torch.randn(12, 3).double(), torch.randn(2, core.state_size).double()
    starts = torch.zeros(12, dtype=torch.bool)
    starts[3] = True

    def gradient(create_graph=False):
        loss = run_core(core, x, states, starts)[0].square().sum()
        return torch.autograd.grad(loss, core.cell.weight_hh_l0, create_graph=create_graph)[0]

    v = torch.randn_like(core.cell.weight_hh_l0)
    product = torch.autograd.grad((gradient(True) * v).sum(), core.cell.weight_hh_l0)[0]
    with torch.no_grad():
        core.cell.weight_hh_l0.add_(1e-4 * v)
    ahead = gradient()
    with torch.no_grad():
        core.cell.weight_hh_l0.sub_(2e-4 * v)
    assert torch.allclose(product, (ahead - gradient()) / 2e-4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_train_stop_resume_is_train_through_bit_for_bit(kind, tmp_path):
    def build():
        return make_pair("CartPole-v1", model=PPO, policy=TRANSFORMER | {"core": kind})

    def fit(epochs, path=None):
        model, data = build()
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
        return model, trainer

    through, through_trainer = fit(3)
    _, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    (state,) = torch.load(tmp_path / "one.ckpt", weights_only=True)["RolloutDataModule"]["ranks"]
    assert unpack(state)["collector"]["recurrent_state"].abs().amax(-1).min() > 0.0
    resumed, resumed_trainer = fit(3, tmp_path / "one.ckpt")
    assert_same_agent(through, through_trainer, resumed, resumed_trainer)
    loaded = PPO.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert loaded.policy.state_size == through.policy.state_size > 0


# ---------------------------------------------------------------- playing


class Remember(gymnasium.Env):
    """Shows a number at the start and nothing later; pays 1 for the number as action in the third step."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 3.0, (1,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.number = 0, int(self.np_random.integers(3))
        return np.array([self.number + 1], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), float(self.t == 3 and action == self.number), self.t == 3, False, {}


class Forgetful(nn.Module):
    """A whole network of a user's own with memory."""

    def __init__(self, space: gymnasium.Space, num_outputs: int) -> None:
        super().__init__()
        self.core, self.state_size = Latch(1), 1
        self.output = nn.Linear(1, num_outputs)

    def forward(self, inputs, states, starts):
        features, states = run_core(self.core, inputs, states, starts)
        return self.output(features), features.squeeze(-1), states


@pytest.mark.parametrize("mode", MODES)
def test_playing_keeps_the_memory_of_each_episode(mode):
    env = vector([Remember] * 3, mode)
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        PolicyConfig(hidden_sizes=[], core="tests.kit.memory.Latch"),
        NormalizeConfig(observations=False),
    )
    with torch.no_grad():  # logits whose largest is the one of the number kept, minus 1: 2 k x - k^2 of k = x
        policy.network.actor_output.weight.copy_(torch.tensor([[2.0], [4.0], [6.0]]))
        policy.network.actor_output.bias.copy_(torch.tensor([-1.0, -4.0, -9.0]))
    # with a memory that outlived its episode, small numbers after large ones would be answered wrongly
    assert play(policy, env, 60, seeds=[1, 2, 3]).returns.tolist() == [1.0] * 60
    actions, states = policy.step(torch.tensor([[3.0], [1.0]]))
    assert actions.tolist() == [2, 0] and states.tolist() == [[3.0, 3.0], [1.0, 1.0]]  # actor's and critic's
    assert policy.step(torch.zeros(2, 1), states)[0].tolist() == [2, 0]
    assert policy.step(torch.ones(2, 1), states, torch.tensor([True, False]))[0].tolist() == [0, 0]
    assert policy.predict(torch.tensor([[2.0]]))[0].tolist() == [1]


def test_a_whole_network_with_memory_trains():
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule(env=vector([Remember] * 2), num_steps=8, rollouts_per_epoch=1)
    update = {"epochs": 1, "minibatch_size": 8, "sequence_length": 4}
    model = Recording(
        data.observation_space,
        data.action_space,
        policy={"network": "tests.policy.test_recurrence.Forgetful"},
        update=update,
    )
    assert isinstance(model.policy.network, CustomNetwork) and model.policy.state_size == 1
    make_trainer().fit(model, data)
    assert model.log_ratios[0].abs().max() <= 1e-5


class BatchFirst(nn.Module):
    """Takes the axes of its input for others than they are."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.cell = nn.GRU(num_inputs, 4, batch_first=True)
        self.num_features, self.state_size = 4, 4

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        output, hidden = self.cell(x, states.unsqueeze(0))
        return output, hidden[0]


class LastOnly(nn.Module):
    """Returns the outputs of the last step alone, which a single step does not show."""

    num_features = state_size = 3

    def __init__(self, num_inputs: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        return x[-1:, :, :3], states


class Shapeless(LastOnly):
    def forward(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., :3], states[:, :2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"core": "tests.policy.test_recurrence.BatchFirst"}, "policy: the network fails on 2 observations"),
        pytest.param(  # one step after the other, it works
            {"core": "tests.policy.test_recurrence.LastOnly"},
            "policy: the network fails on 6 observations",
            marks=pytest.mark.shortcut,
        ),
        (
            {"core": "tests.policy.test_recurrence.Shapeless"},
            "network gives states of shape (2, 4), expected (2, 6)",
        ),
        ({"core": "lstm", "network": "tests.policy.test_recurrence.Forgetful"}, "policy.core: a network of your own"),
        ({"core": "rnn"}, "policy.core: expected a class path or one of lstm, gru, transformer, got 'rnn'"),
    ],
)
def test_cores_that_cannot_work(settings, message):
    with pytest.raises(ConfigError) as caught:
        ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), PolicyConfig(**settings))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cores_hold_weights_and_no_layer_that_needs_them_in_one_buffer(kind):
    core = RecurrentCore(kind, 3, 4)
    assert not any(isinstance(module, nn.RNNBase) for module in core.modules())
    layer = (nn.LSTM if kind == "lstm" else nn.GRU)(3, 4)
    assert [(n, p.shape) for n, p in core.cell.named_parameters()] == [
        (n, p.shape) for n, p in layer.named_parameters()
    ]
