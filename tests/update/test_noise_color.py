"""The colour of the noise follows its schedule over the budget, also where training goes on and in other processes."""

import pytest
import pytorch_lightning as pl
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.worker import tensors_of
from lightning_ppo.settings.algorithm import UpdateConfig
from lightning_ppo.support.errors import ConfigError

FALLING = {"kind": "linear", "start": 1.0, "end": 0.0, "until": 0.5}


class Colors(pl.Callback):
    """Keeps the colour that each rollout is collected with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_start(self, trainer, module) -> None:
        self.seen.append(float(module.policy.head.noise_color))


def trainer(**settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return pl.Trainer(accelerator="cpu", max_epochs=100, enable_checkpointing=False, **quiet, **settings)


def make() -> tuple[PPO, RolloutDataModule]:
    """Return an agent and data of which each epoch is a rollout, an eighth of the budget."""
    data = RolloutDataModule(env="Pendulum-v1", num_envs=2, num_steps=8, rollouts_per_epoch=1)
    update = {"epochs": 1, "minibatch_size": 16, "noise_color": FALLING}
    return PPO(data.observation_space, data.action_space, total_env_steps=128, update=update), data


def test_each_rollout_has_the_colour_of_its_share_of_the_budget(tmp_path):
    model, data = make()
    colors = Colors()
    first = trainer(callbacks=[colors])
    first.fit(model, data)
    assert colors.seen == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0])


def test_training_that_goes_on_has_the_colour_it_had(tmp_path):
    model, data = make()
    first = trainer(max_steps=3)
    first.fit(model, data)
    first.save_checkpoint(tmp_path / "third.ckpt")
    model, data = make()
    colors = Colors()
    trainer(callbacks=[colors]).fit(model, data, ckpt_path=tmp_path / "third.ckpt", weights_only=True)
    assert colors.seen == pytest.approx([0.25, 0.0, 0.0, 0.0, 0.0])


def test_it_is_sent_with_the_weights_and_no_part_of_a_checkpoint():
    model, _ = make()
    model.policy.head.set_noise_color(0.7)
    assert any(float(tensor) == pytest.approx(0.7) for tensor in tensors_of(model.policy) if tensor.dim() == 0)
    assert not [name for name in model.state_dict() if "noise_color" in name]


def test_other_actions_have_none():
    PPO(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)).policy.head.set_noise_color(1.0)


@pytest.mark.parametrize("color", [2.1, {"kind": "linear", "start": 3.0, "end": 0.0}])
def test_colours_that_are_none_are_refused(color):
    with pytest.raises(ConfigError, match=r"update\.noise_color: must be at most 2"):
        UpdateConfig(noise_color=color)
