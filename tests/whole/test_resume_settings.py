"""Every setting that may change on resuming, crossed with memory, masks and the processes that collect."""

import copy
import warnings

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.remote import RemoteCollector
from lightning_ppo.collection.worker import tensors_of
from lightning_ppo.support.packing import pack, unpack
from tests.kit.training import make_trainer


class Masked(gymnasium.Env):
    """Dict observations in float64 and masks in infos; the episodes are longer than the tests."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {"box": spaces.Box(-np.inf, np.inf, (2,), np.float64), "side": spaces.Discrete(3)}
        )
        self.action_space = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (1,))))

    def _seen(self):
        mask = np.arange(3) != self.t % 3
        return {"box": np.array([self.t, self.np_random.normal()]), "side": self.t % 3}, {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen()

    def step(self, action):
        self.t += 1
        observation, info = self._seen()
        return observation, float(action[1][0]), False, self.t == 1000, info


class Nearby:
    """A `RemoteCollector` that collects in this process, with a policy of its own."""

    def __init__(self, make, policy, precision=torch.no_grad, threads=None) -> None:
        self.policy, self.precision = policy, precision
        self.collector = copy.deepcopy(make)()
        self.begun, self.found = False, None

    def begin(self) -> None:
        with torch.no_grad():
            for own, learnt in zip(tensors_of(self.collector.policy), tensors_of(self.policy), strict=True):
                own.copy_(learnt)
        self.collector.policy.version = self.policy.version
        with self.precision():
            self.begun, self.found = True, self.collector.collect()

    def change(self, changes) -> None:
        self.collector.change(changes)

    def finish(self):
        return self.found

    def give_back(self, rollout) -> None:
        self.begun, self.found = True, rollout

    def state_dict(self):
        return self.collector.state_dict()

    def load_state_dict(self, state) -> str:
        return self.collector.load_state_dict(state)

    def close(self) -> None:
        self.collector.close()

    kill = close


class Kept(PPO):
    """Keeps its rollouts."""

    def training_step(self, rollout, batch_idx):
        self.rollouts = [*getattr(self, "rollouts", []), rollout]
        super().training_step(rollout, batch_idx)


def fit(epochs: int, core, path=None, *, precision="32-true", action_mask="info", env=None, **settings):
    pl.seed_everything(3, verbose=False)
    rollout = {"num_envs": 2, "num_steps": 8, "overlap": False, "processes": 1}
    rollout |= {name: settings.pop(name) for name in list(settings) if name in (*rollout, "gamma")}
    env = {"id": "tests.whole.test_resume_settings:Masked", "action_mask": action_mask, "backend": "sync"}
    data = RolloutDataModule(env, rollouts_per_epoch=1, **rollout)
    update = {"epochs": 1, "minibatch_size": 8, "sequence_length": 4 if core else None} | settings.pop("update", {})
    policy = {"core": core, "hidden_sizes": [8], "core_size": 4}
    model = Kept(data.observation_space, data.action_space, policy=policy, update=update, **settings)
    trainer = make_trainer(max_epochs=epochs, precision=precision)
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    return model, trainer


CHANGES = {
    "to float32": ({"precision": "64-true"}, {}),
    "to float64": ({}, {"precision": "64-true"}),
    "to bfloat16": ({}, {"precision": "bf16-mixed"}),
    "from float64 to bfloat16": ({"precision": "64-true"}, {"precision": "bf16-mixed"}),
    "num_envs": ({}, {"num_envs": 4}),
    "num_steps": ({}, {"num_steps": 16}),
    "masks off": ({}, {"action_mask": "none"}),
    "masks on": ({"action_mask": "none"}, {}),
    "minibatches": ({}, {"update": {"minibatch_size": 16, "epochs": 2}, "gamma": 0.9}),
    "overlap on": ({"overlap": False}, {"overlap": True}),
    "overlap off": ({"overlap": True}, {"overlap": False}),
    "processes": ({"processes": 1}, {"processes": 2}),
}
RESTART = ("num_envs", "masks off", "masks on", "processes")


@pytest.mark.exhaustive
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("core", "way"),
    [
        (None, {}),
        ("gru", {}),
        ("lstm", {"overlap": True}),
        ("gru", {"processes": 2}),
        ("transformer", {"overlap": True, "processes": 2}),
        (None, {"overlap": True, "processes": 2}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the checkpoint has|the rollout that was collected ahead")
def test_training_goes_on(change, core, way, tmp_path, monkeypatch):
    for room in ("processes", "groups"):
        monkeypatch.setattr(f"lightning_ppo.collection.{room}.RemoteCollector", Nearby)
    before, after = CHANGES[change]
    _, trainer = fit(2, core, **way | before)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = fit(4, core, tmp_path / "two.ckpt", **way | after)
    assert resumed.iterations == 4 and len(resumed.rollouts) == 2
    dtype = torch.float64 if after.get("precision") == "64-true" else torch.float32
    for parameter in resumed.parameters():
        assert parameter.dtype == dtype and parameter.isfinite().all()
    first = resumed.rollouts[0]
    assert {first.log_probs.dtype, first.values.dtype, first.rewards.dtype} == {dtype}
    went_on = first.observations["box"][0, :, 0] > 0.0
    restarted = change in RESTART and way | before != way | after
    assert (~went_on).all() if restarted else went_on.all()
    last = resumed.rollouts[-1]
    assert (last.action_masks is None) == (after.get("action_mask") == "none")
    if core and went_on.all():
        assert first.states[0].abs().max() > 0.0 and first.states.dtype == dtype


@pytest.mark.ranks
@pytest.mark.parametrize("precisions", [("64-true", "32-true"), ("32-true", "64-true")], ids=str)
def test_so_it_does_with_a_process_of_its_own(precisions, tmp_path):
    first, second = precisions
    _, trainer = fit(1, "lstm", overlap=True, precision=first)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, _ = fit(3, "lstm", tmp_path / "one.ckpt", overlap=True, precision=second)
    assert resumed.iterations == 3
    steps = torch.cat([rollout.observations["box"][:, 0, 0] for rollout in resumed.rollouts])
    assert steps.tolist() == list(range(8, 24))


WAYS = [(None, {}), ("gru", {"overlap": True}), ("lstm", {"processes": 2})]


def went_on_exactly(resumed, core, steps):
    """Check that rollouts go on at a step of the episodes, with masks and memory."""
    shown = torch.cat([rollout.observations["box"][:, 0, 0] for rollout in resumed.rollouts])
    assert shown.tolist() == list(range(steps, steps + len(shown)))
    assert all(rollout.action_masks is not None for rollout in resumed.rollouts)
    if core:
        assert resumed.rollouts[0].states[0].abs().max() > 0.0


@pytest.mark.compiled
@pytest.mark.parametrize(("core", "way"), WAYS, ids=str)
def test_from_eager_to_compiled_and_back(core, way, tmp_path, monkeypatch):
    for room in ("processes", "groups"):
        monkeypatch.setattr(f"lightning_ppo.collection.{room}.RemoteCollector", Nearby)
    # else Adam takes the last digit of a small gradient for a whole step, and the budget of a piece is that piece
    way = way | {"optimizer": {"epsilon": 0.1}, "total_env_steps": 48}
    straight, _ = fit(3, core, **way)
    path = None
    for epochs, compiled in ((1, False), (2, True), (3, False)):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="compile")
            resumed, trainer = fit(epochs, core, path, compile=compiled, **way)
        assert (resumed.compile_seconds > 0.0) == compiled
        if epochs > 1:
            went_on_exactly(resumed, core, 8 * (epochs - 1))
        path = tmp_path / f"{epochs}.ckpt"
        trainer.save_checkpoint(path)
    for (name, expected), found in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def of_a_gpu(tree):
    """Return saved states with random states as those of a GPU, which have 16 bytes."""
    if isinstance(tree, dict):
        states = {name: of_a_gpu(value) for name, value in tree.items()}
        given = {name: torch.zeros(16, dtype=torch.uint8) for name in ("generator", "shuffle") if name in tree}
        return states | given | ({"cuda": [torch.zeros(16, dtype=torch.uint8)]} if "cuda" in tree else {})
    return [of_a_gpu(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize(("core", "way"), WAYS, ids=str)
@pytest.mark.filterwarnings("ignore:the checkpoint was written on another kind of device", "ignore:the checkpoint has")
def test_what_a_gpu_has_written_goes_on_here(core, way, tmp_path, monkeypatch):
    for room in ("processes", "groups"):
        monkeypatch.setattr(f"lightning_ppo.collection.{room}.RemoteCollector", Nearby)
    _, trainer = fit(1, core)  # beside which nobody collects there
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    content = of_a_gpu(torch.load(tmp_path / "one.ckpt", weights_only=True))
    for name in ("RolloutDataModule", "ppo"):
        ranks = content[name]["ranks"]
        content[name]["ranks"] = [pack(of_a_gpu(unpack(x))) if name == "RolloutDataModule" else x for x in ranks]
    torch.save(content, tmp_path / "elsewhere.ckpt")
    resumed, _ = fit(3, core, tmp_path / "elsewhere.ckpt", **way)
    assert resumed.iterations == 3
    if "processes" not in way:  # with which episodes restart
        went_on_exactly(resumed, core, 8)


def test_the_imitation_is_one():
    assert {name for name in vars(RemoteCollector) if not name.startswith("_")} <= set(dir(Nearby))
