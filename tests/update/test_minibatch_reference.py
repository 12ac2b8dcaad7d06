"""Real minibatches of real iterations against formulas written anew in float64, and what differs between ranks."""

import math

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import lightning_ppo.collection.datamodule
import lightning_ppo.update.ppo
import lightning_ppo.update.shuffle
from lightning_ppo import PPO, RolloutDataModule
from tests.kit.training import make_trainer

UPDATE = {
    "epochs": 3,
    "minibatch_size": 20,
    "clip_range": 0.05,
    "clip_range_high": 0.4,
    "entropy_coefficient": 0.03,
    "value_coefficient": 0.7,
    "value_clip_range": 0.1,
    "kl_coefficient": 0.8,
    "std_decay": 0.0,
}


class Choices(gymnasium.Env):
    """Episodes of 3 or 4 steps; of three choices the one where the observation is largest is illegal."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float64)

    def __init__(self, action_space: gymnasium.Space, length: int = 3) -> None:
        self.action_space, self.length = action_space, length

    def _shown(self):
        self.seen = self.np_random.uniform(-1.0, 1.0, 3)
        discrete = isinstance(self.action_space, spaces.Discrete)
        return self.seen, {"action_mask": np.arange(3) != self.seen.argmax()} if discrete else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._shown()

    def step(self, action):
        reward, self.t = float(np.sum(action) * self.seen[0]), self.t + 1
        observation, info = self._shown()
        return observation, reward, self.t >= self.length, False, info


class Watched(PPO):
    """Keeps every minibatch with the parameters it met, its loss and its gradients."""

    def training_step(self, rollout, batch_idx):
        self.behaviour = {name: x.detach().clone() for name, x in self.named_parameters()}
        self.minibatches, self.constrained = [], []
        super().training_step(rollout, batch_idx)

    def minibatch_loss(self, minibatch):
        loss, reported = super().minibatch_loss(minibatch)
        now = dict(self.named_parameters())
        gradients = torch.autograd.grad(loss, list(now.values()), retain_graph=True, allow_unused=True)
        here = {name: x.detach().clone() for name, x in now.items()}
        self.minibatches.append((minibatch, here, loss.detach(), dict(zip(now, gradients, strict=True))))
        return loss, reported

    def constrained_loss(self, batch):
        loss, divergence = super().constrained_loss(batch)
        here = {name: x.detach().clone() for name, x in self.named_parameters()}
        self.constrained.append((batch, here, loss.detach(), divergence.detach()))
        return loss, divergence


def trained(space, objective, **settings):
    pl.seed_everything(4, verbose=False)
    env = SyncVectorEnv([lambda n=n: Choices(space, n) for n in (3, 4)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    data = RolloutDataModule(env, num_steps=15, rollouts_per_epoch=1, seed=4, stagger=False)
    model = Watched(
        data.observation_space,
        data.action_space,
        objective=objective,
        update=UPDATE | settings,
        optimizer={"learning_rate": 0.03},
        policy={"hidden_sizes": [8, 8]},
        normalize={"observations": False},
    )
    make_trainer(max_epochs=1, precision="64-true").fit(model, data)
    return model


def forward(parameters, observations):
    """Return the actor's outputs and the values of tanh networks with two hidden layers."""

    def network(trunk, output):
        x = observations
        for layer in (f"{trunk}.mlp.0", f"{trunk}.mlp.2"):
            x = torch.tanh(
                x @ parameters[f"policy.network.{layer}.weight"].T + parameters[f"policy.network.{layer}.bias"]
            )
        return x @ parameters[f"policy.network.{output}.weight"].T + parameters[f"policy.network.{output}.bias"]

    return network("actor_trunk", "actor_output"), network("critic_trunk", "critic_output")[:, 0]


def judged(parameters, behaviour, minibatch, discrete):
    """Return log-probabilities, entropies and KL(behaviour || now) of every row, and the values."""
    x = minibatch.observations
    outputs, values = forward(parameters, x)
    before, _ = forward(behaviour, x)
    if discrete:
        legal = torch.arange(3) != x.argmax(1, keepdim=True)  # by the rules of the environment
        now, old = (torch.where(legal, o, -math.inf).log_softmax(1) for o in (outputs, before))
        log_probs = now.gather(1, minibatch.actions[:, None])[:, 0]
        finite, earlier = now.masked_fill(~legal, 0.0), old.masked_fill(~legal, 0.0)
        entropies = -(finite.exp() * finite * legal).sum(1)
        return log_probs, entropies, (earlier.exp() * (earlier - finite) * legal).sum(1), values
    log_std, old_log_std = (p["policy.head.log_std"] for p in (parameters, behaviour))
    z = (minibatch.actions - outputs) / log_std.exp()
    log_probs = (-0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(1)
    entropies = (log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum().expand(len(x))
    squares = old_log_std.exp() ** 2 + (before - outputs) ** 2
    kl = (log_std - old_log_std + squares / (2.0 * log_std.exp() ** 2) - 0.5).sum(1)
    return log_probs, entropies, kl, values


def expected_loss(parameters, behaviour, minibatch, discrete, objective):
    log_probs, entropies, kl, values = judged(parameters, behaviour, minibatch, discrete)
    with torch.no_grad():
        old_log_probs, _, _, old_values = judged(behaviour, behaviour, minibatch, discrete)
    valid = minibatch.weights > 0
    ratios = torch.where(valid, log_probs - old_log_probs, 0.0).exp()
    gains = ratios * minibatch.advantages
    if objective == "clip":
        bounded = torch.where(ratios < 0.95, 0.95, torch.where(ratios > 1.4, 1.4, ratios))
        gains = torch.where(gains < bounded * minibatch.advantages, gains, bounded * minibatch.advantages)
    else:
        gains = gains - 0.8 * kl
    moved = old_values + torch.where(
        (values - old_values).abs() > 0.1, 0.1 * (values - old_values).sign(), values - old_values
    )
    errors = torch.stack(((values - minibatch.returns) ** 2, (moved - minibatch.returns) ** 2)).max(0).values
    rows = -gains + 0.7 * 0.5 * errors - 0.03 * entropies
    return rows[valid].sum() / valid.sum(), ratios[valid], (values - old_values)[valid]


@pytest.mark.parametrize("objective", ["clip", "kl_penalty"])
@pytest.mark.parametrize("discrete", [True, False], ids=["masked Discrete", "Box"])
def test_loss_and_gradients_of_real_minibatches(objective, discrete):
    model = trained(spaces.Discrete(3) if discrete else spaces.Box(-1.0, 1.0, (2,), np.float64), objective)
    ratios, moves, fillers = [], [], 0
    for minibatch, parameters, loss, gradients in model.minibatches:
        leaves = {name: x.requires_grad_() for name, x in parameters.items()}
        expected, ratio, move = expected_loss(leaves, model.behaviour, minibatch, discrete, objective)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
        slopes = torch.autograd.grad(expected, list(leaves.values()), allow_unused=True)
        for (name, ours), theirs in zip(gradients.items(), slopes, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11, msg=name)
        ratios, moves = [*ratios, ratio.detach()], [*moves, move.detach()]
        fillers += int((minibatch.weights == 0).sum())
    found, moved = torch.cat(ratios), torch.cat(moves)
    # every bound was met, and rows that are no transitions were among them
    assert len(model.minibatches) == 9 and fillers > 0
    assert (found < 0.95).any() and (found > 1.4).any() and ((found > 1.05) & (found < 1.4)).any()
    assert (moved.abs() > 0.1).any() and (moved.abs() < 0.1).any()


@pytest.mark.parametrize("discrete", [True, False], ids=["masked Discrete", "Box"])
def test_loss_and_divergence_of_the_trust_region(discrete):
    space = spaces.Discrete(3) if discrete else spaces.Box(-1.0, 1.0, (2,), np.float64)
    model = trained(space, "trpo", trust_region={"max_kl": 0.3})
    far = 0
    for batch, parameters, loss, divergence in model.constrained:
        log_probs, entropies, kl, _ = judged(parameters, model.behaviour, batch, discrete)
        old_log_probs, *_ = judged(model.behaviour, model.behaviour, batch, discrete)
        valid = batch.weights > 0
        rows = -(log_probs - old_log_probs).exp() * batch.advantages - 0.03 * entropies
        torch.testing.assert_close(loss, rows[valid].mean(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(divergence, kl[valid].mean(), rtol=1e-10, atol=1e-12)
        far += bool(kl.mean() > 0.02)
    assert far > 0  # where the two directions differ


# ---------------------------------------------------------------- ranks


class Still(Choices):
    """Always shows the same, so that actions differ by their noise alone."""

    def __init__(self):
        super().__init__(spaces.Box(-1.0, 1.0, (2,)))

    def _shown(self):
        self.seen = np.zeros(3)
        return self.seen, {}


def of_rank(rank, monkeypatch, **settings):
    """Return the actions (T, N) and the rows of the minibatches of one iteration of a rank."""
    for module in (lightning_ppo.collection.datamodule, lightning_ppo.update.shuffle):
        monkeypatch.setattr(module, "rank", lambda: rank)
    orders = []
    shuffle = lightning_ppo.update.shuffle.shuffled_indices
    monkeypatch.setattr(
        lightning_ppo.update.shuffle, "shuffled_indices", lambda *args: (orders.append(shuffle(*args)), orders[-1])[1]
    )
    pl.seed_everything(4, verbose=False)
    env = {"id": f"{__name__}:Still", "num_envs": 4, "backend": "sync", "stagger": False}
    data = RolloutDataModule(env, num_steps=10, rollouts_per_epoch=1, seed=4, evaluation={"episodes": 0}, **settings)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 10})
    taken = []
    look = pl.callbacks.LambdaCallback(on_train_batch_start=lambda *args: taken.append(args[2].actions.clone()))
    make_trainer(max_epochs=1, callbacks=[look]).fit(model, data)
    monkeypatch.setattr(lightning_ppo.update.shuffle, "shuffled_indices", shuffle)
    return taken[0], orders[0]


@pytest.mark.parametrize("settings", [{}, pytest.param({"processes": 2}, marks=pytest.mark.ranks)], ids=str)
def test_no_two_ranks_have_the_same_noise_or_the_same_minibatches(settings, monkeypatch):
    ranks = [of_rank(rank, monkeypatch, **settings) for rank in (0, 1, 0)]
    actions = torch.cat([taken for taken, _ in ranks[:2]], 1)
    assert len(actions.unique()) == actions.numel()  # over steps, copies, processes and ranks
    assert not torch.equal(ranks[0][1], ranks[1][1])
    assert torch.equal(ranks[0][0], ranks[2][0]) and torch.equal(ranks[0][1], ranks[2][1])


@pytest.mark.parametrize(("others", "epochs"), [(1e3, 1), (-1e3, 3)], ids=["far away", "near"])
def test_target_kl_is_that_of_all_ranks(others, epochs, monkeypatch):
    """The other ranks' divergence is added where ranks average: it decides, not this rank's own."""
    mean = lightning_ppo.update.ppo.mean_over_ranks
    monkeypatch.setattr(
        lightning_ppo.update.ppo,
        "mean_over_ranks",
        lambda x: mean(x + torch.tensor([others, 0.0])) if x.shape == (2,) else mean(x),
    )
    model = trained(spaces.Box(-1.0, 1.0, (2,), np.float64), "clip", target_kl=0.5 if others > 0 else 1e-6)
    assert len(model.minibatches) == 3 * epochs
