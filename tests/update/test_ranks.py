"""What ranks agree on in an update: orders, reports, windows, states; each rank a thread."""

from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO
from lightning_ppo.rollout.shapes import Episodes, Minibatch
from lightning_ppo.update import iteration, minibatch_update, training_state
from lightning_ppo.update.reports import LOSSES, MEASURES, report_iteration
from lightning_ppo.update.shuffle import Shuffle
from lightning_ppo.update.training_state import RecentEpisodes
from tests.kit.threads import in_ranks
from tests.kit.training import make_pair, make_trainer


def batch_of(weights: list[float], **fields: Any) -> Minibatch:
    weighted = torch.tensor(weights)
    zeros = torch.zeros_like(weighted)
    given = {name: torch.tensor(value) for name, value in fields.items()}
    scalars = {name: zeros for name in ("log_probs", "values", "advantages", "returns")}
    return Minibatch(observations=zeros, actions=zeros, distribution=zeros, weights=weighted, **(scalars | given))


def test_a_minibatch_weighs_every_transition_of_all_ranks_alike():
    rows = [[1.0] * 8, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    torch.manual_seed(5)
    orders = in_ranks(2, lambda rank: Shuffle()(batch_of(rows[rank]), 4, 1))
    assert torch.equal(orders[0].scales, orders[1].scales)
    # on average over the ranks the weights of a minibatch sum to 1
    torch.testing.assert_close((orders[0].weights + orders[1].weights).sum(1) / 2, torch.ones(2))


def test_no_two_ranks_shuffle_alike():
    torch.manual_seed(5)
    first, second = in_ranks(2, lambda rank: Shuffle()(batch_of([1.0] * 64), 16, 1).rows)
    assert not torch.equal(first, second)
    assert sorted(first.flatten().tolist()) == sorted(second.flatten().tolist()) == list(range(64))


def test_a_report_is_one_of_all_rows_and_episodes_whichever_rank_has_more():
    values = [[1.0, 2.0, 3.0, 0.0], [5.0, 0.0, 0.0, 0.0]]
    returns = [[1.5, 2.0, 4.0, 0.0], [5.0, 0.0, 0.0, 0.0]]
    weights = [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    ended = [([10.0], [1]), ([20.0, 30.0, 40.0], [2, 3, 6])]
    divergence = [0.5, 0.3]  # summed over the rows of a rank
    names = (*LOSSES, *MEASURES)

    def reported(rank):
        recent = RecentEpisodes()
        recent.add(Episodes(torch.tensor(ended[rank][0], dtype=torch.float64), torch.tensor(ended[rank][1])))
        module: Any = SimpleNamespace(
            statistics=names,
            entropy_matters=False,
            recent_episodes=recent,
            divergence=lambda batch: torch.tensor(divergence[rank]),
            trainer=SimpleNamespace(precision_plugin=None),
        )
        batch = batch_of(weights[rank], values=values[rank], returns=returns[rank])
        rollout: Any = SimpleNamespace(collect_seconds=1.0 + rank, infos={})
        # two epochs of two minibatches: 0, 1, 2, 3 on rank 0, and 4 more on rank 1
        epochs = (torch.arange(4.0) + 4.0 * rank).view(2, 2, 1).expand(2, 2, len(names))
        return report_iteration(module, rollout, batch, epochs)

    first, second = in_ranks(2, reported)
    assert first == second
    assert first.finite and first.env_steps == 4 and first.collect_seconds == 1.5
    assert first.kl == pytest.approx(0.8 / 4)
    metrics = first.metrics
    assert metrics["loss/policy"] == metrics["update/grad_norm"] == pytest.approx(3.5)
    assert metrics["update/epochs"] == 2
    assert metrics["rollout/return_mean"] == pytest.approx(25.0)
    assert metrics["rollout/length_mean"] == pytest.approx(3.0)
    errors, targets = torch.tensor([0.5, 0.0, 1.0, 0.0]), torch.tensor([1.5, 2.0, 4.0, 5.0])
    explained = 1.0 - errors.var(correction=0) / targets.var(correction=0)
    assert metrics["update/explained_variance"] == pytest.approx(float(explained), abs=1e-6)


def test_ranks_share_the_window_of_a_hundred_episodes():
    def kept(rank):
        recent = RecentEpisodes()
        recent.keep_share()
        recent.add(Episodes(torch.arange(60, dtype=torch.float64), torch.arange(60)))
        return recent.sums()[2]

    assert in_ranks(2, kept) == [50, 50]
    assert in_ranks(3, kept) == [34, 34, 34]


def make_ppo() -> PPO:
    env = gymnasium.make("CartPole-v1")
    return PPO(env.observation_space, env.action_space, policy={"hidden_sizes": [4]})


def test_every_rank_goes_on_with_what_was_its_own():
    def saved(rank):
        model = make_ppo()
        model.recent_episodes.add(Episodes(torch.tensor([float(rank)], dtype=torch.float64), torch.tensor([rank + 1])))
        checkpoint: dict[str, Any] = {}
        training_state.save(model, checkpoint)
        return checkpoint

    checkpoints = in_ranks(2, saved)

    def restored(rank):
        model = make_ppo()
        training_state.restore(model, checkpoints[0])
        return list(model.recent_returns), list(model.recent_lengths)

    assert in_ranks(2, restored) == [([0.0], [1.0]), ([1.0], [2.0])]


@pytest.mark.shortcut
def test_gradients_are_those_that_ranks_average(monkeypatch):
    asked = []

    def of_another(gradients):
        asked.append(gradients.clone())
        gradients.mul_(3.0)

    def norms(**settings) -> list[float]:
        model, data = make_pair(update={"epochs": 1, "minibatch_size": 64, "max_grad_norm": None}, **settings)
        trainer = make_trainer()
        trainer.fit(model, data)
        return [float(trainer.callback_metrics["update/grad_norm"])]

    (alone,) = norms()
    monkeypatch.setattr(minibatch_update, "average_in_place", of_another)
    (together,) = norms()
    assert len(asked) == 1 and together == pytest.approx(3.0 * alone, rel=1e-5)


def test_observation_statistics_are_those_of_all_ranks(monkeypatch):
    monkeypatch.setattr(iteration, "sum_over_ranks", lambda tensor: 2.0 * tensor)
    model, data = make_pair()
    make_trainer().fit(model, data)
    (normalizer,) = model.policy.inputs.normalizers.values()
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(len(batch.final_observations()) + int(batch.valid.sum()))

    alone, data = make_pair()
    make_trainer(callbacks=[Look()]).fit(alone, data)
    assert float(normalizer.count) == 2.0 * seen[0]
