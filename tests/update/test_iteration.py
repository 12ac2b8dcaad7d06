"""What an iteration reports of the rollout that it has learnt from."""

import pytorch_lightning as pl

from tests.kit.training import make_pair, make_trainer


def test_what_is_collected_with_the_policy_that_learns_from_it_has_no_lag():
    lags = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            lags.append((float(trainer.callback_metrics["rollout/policy_lag"]), batch.policy_version))

    model, data = make_pair(rollouts_per_epoch=3)
    make_trainer(callbacks=[Look()]).fit(model, data)
    assert lags == [(0.0, 0), (0.0, 1), (0.0, 2)]
