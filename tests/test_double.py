"""`trainer.precision=64-true`: everything from observations to weights is float64, and stays that on resuming."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from tests.test_module import make_trainer

SETTINGS = {
    "mlp": ("CartPole-v1", {}),
    "without normalisation": ("Pendulum-v1", {"normalize": {"observations": False}}),
    "gru": ("Pendulum-v1", {"policy": {"core": "gru"}}),
    "gsde": ("Pendulum-v1", {"policy": {"distribution": "gsde"}}),
    "mixed spaces": (f"{__name__}:Mixed", {"policy": {"core": "lstm", "distribution": "tanh_gaussian"}}),
}


class Mixed(gymnasium.Env):
    """Shows and takes something of every kind; its observations need float64."""

    def __init__(self) -> None:
        box = spaces.Box(-2.0, 2.0, (2,), np.float64)
        image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = spaces.Dict(
            box=box, choice=spaces.Discrete(3), bits=spaces.MultiBinary(2), image=image
        )
        self.action_space = spaces.Dict(force=spaces.Box(-0.5, 0.5, (2,), np.float32), choice=spaces.Discrete(2))

    def observe(self):
        draw = self.np_random
        bits, image = draw.integers(0, 2, 2, np.int8), draw.integers(0, 256, (36, 36, 1), np.uint8)
        return {"box": draw.uniform(-2.0, 2.0, 2), "choice": draw.integers(3), "bits": bits, "image": image}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        ended = bool(self.np_random.random() < 0.1)
        return self.observe(), float(action["force"].sum()), ended, False, {}


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
