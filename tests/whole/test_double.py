"""`trainer.precision=64-true`: everything from observations to weights is float64, and stays that on resuming."""

import pytest
import torch

from lightning_ppo import PPO, RolloutDataModule
from tests.kit.training import make_trainer

SETTINGS = {
    "mlp": ("CartPole-v1", {}),
    "without normalisation": ("Pendulum-v1", {"normalize": {"observations": False}}),
    "gru": ("Pendulum-v1", {"policy": {"core": "gru"}}),
    "transformer": ("Pendulum-v1", {"policy": {"core": "transformer"}}),
    "gsde": ("Pendulum-v1", {"policy": {"distribution": "gsde"}}),
    "mixed spaces": ("tests.kit.rich_envs:Mixed", {"policy": {"core": "lstm", "distribution": "tanh_gaussian"}}),
}


class Watched(PPO):
    """Keeps its rollouts."""

    def training_step(self, rollout, batch_idx):
        self.seen = getattr(self, "seen", [])
        self.seen.append(rollout)
        return super().training_step(rollout, batch_idx)


def fit(name: str, epochs: int, resume: str | None = None):
    torch.manual_seed(4)
    env, settings = SETTINGS[name]
    data = RolloutDataModule(
        env, num_envs=2, num_steps=8, backend="sync", rollouts_per_epoch=2, seed=4, evaluation={"episodes": 2}
    )
    update = {"epochs": 2, "minibatch_size": 8, "sequence_length": 4 if "core" in settings.get("policy", {}) else None}
    model = Watched(data.observation_space, data.action_space, update=update, total_env_steps=64, **settings)
    trainer = make_trainer(max_epochs=epochs, precision="64-true")
    trainer.fit(model, data, ckpt_path=resume, **({"weights_only": True} if resume else {}))
    return model, trainer


@pytest.mark.parametrize("name", SETTINGS)
def test_everything_is_float64_and_resumes_so(name, tmp_path):
    _, trainer = fit(name, 1)
    path = str(tmp_path / "first.ckpt")
    trainer.save_checkpoint(path)
    resumed, _ = fit(name, 2, path)
    through, _ = fit(name, 2)
    assert {p.dtype for p in (*through.parameters(), *resumed.parameters())} == {torch.float64}
    for mine, theirs in zip(resumed.parameters(), through.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    # which the kernel of Adam for GPUs takes the count of steps for
    assert {state["step"].dtype for state in trainer.optimizers[0].state.values()} == {torch.float32}
    rollout = through.seen[0]
    computed = (rollout.distribution, rollout.log_probs, rollout.values, rollout.next_values, rollout.rewards)
    assert {x.dtype for x in (*computed, rollout.advantages, rollout.returns)} == {torch.float64}
    if name == "mixed spaces":
        box = rollout.observations["box"]
        assert box.dtype == rollout.actions.dtype == rollout.states.dtype == torch.float64
        assert not torch.equal(box.float().double(), box)
