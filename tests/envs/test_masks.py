"""Action masks: in every form, from every source, the same in acting, learning and evaluation, and never ignored."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from lightning_ppo import PPO, RolloutDataModule, cli
from lightning_ppo.cli import train
from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs.masks import ActionMasks, MaskSource, observed_space
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.evaluation.play import play
from lightning_ppo.evaluation.video import Stage
from lightning_ppo.policy.actor_critic import MaskedObservations
from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.policy.scoring import divergences
from lightning_ppo.rollout.shapes import select
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from tests.kit.envs import Count, make_vector_env, vector
from tests.kit.rich_envs import THREE, Forbidden, legal_at
from tests.kit.spaces import MIXED, agent_of, choices_of, chosen, flattened
from tests.kit.training import make_trainer

SOURCES = ("info", "observation:legal", "method:legal_actions")


def forbidden(source: str, mode: AutoresetMode, kind: str = "sync", **kwargs: Any) -> VectorEnv:
    # lengths of their own, so that episodes do not end together
    makers = [lambda length=length: Forbidden(source, length, **kwargs) for length in (3, 4)]
    return vector(makers, mode, kind)


# ---------------------------------------------------------------- the mask that acted


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("source", SOURCES)
def test_the_mask_of_the_update_is_the_mask_that_acted(source: str, mode: AutoresetMode, kind: str) -> None:
    env = forbidden(source, mode, kind)
    space = observed_space(env.single_observation_space, source)
    assert "legal" not in str(space)
    agent = agent_of(space, THREE, "gaussian", gain=1000.0)
    rollout = Collector(env, agent, 13, torch.Generator().manual_seed(0), [1, 2], source).collect()
    times = rollout.observations["t"] if isinstance(rollout.observations, dict) else rollout.observations
    expected = torch.from_numpy(np.stack([legal_at(int(t)) for t in times.flatten()])).view(13, 2, 3)
    assert rollout.action_masks is not None and rollout.valid.sum() >= 20
    assert torch.equal(rollout.action_masks[rollout.valid], expected[rollout.valid])
    # 4 or more of the illegal actions would have been taken without the mask; here their probability is exactly 0
    probabilities = rollout.distribution.softmax(-1)
    assert (probabilities[~rollout.action_masks] == 0.0).all() and (probabilities[rollout.action_masks] > 0.0).any()

    batch = flattened(rollout)
    order = torch.randperm(26, generator=torch.Generator().manual_seed(0))
    minibatch = select(batch, order)
    now = agent.evaluate(minibatch)
    ratios = (now.log_probs - minibatch.log_probs)[minibatch.weights > 0].exp()
    assert (ratios - 1.0).abs().max() <= 1e-5
    assert (divergences(agent, minibatch) <= 1e-6).all()
    # the test could fail: with the masks of other rows it does
    wrong = agent.evaluate(minibatch._replace(action_masks=minibatch.action_masks.roll(1, 0)))
    assert ((wrong.log_probs - minibatch.log_probs).exp() - 1.0).abs().max() > 0.1
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("source", SOURCES)
def test_an_observation_without_legal_actions_is_named(source: str, mode: AutoresetMode) -> None:
    makers = [lambda: Forbidden(source, 9), lambda: Forbidden(source, 9, blocked_at=2)]
    env = vector(makers, mode)
    agent = agent_of(observed_space(env.single_observation_space, source), THREE, "gaussian")
    message = "env 1 masks every choice of an action at step 2; at least one must be legal"
    with pytest.raises(EnvironmentFault, match=message):
        Collector(env, agent, 5, torch.Generator(), [1, 2], source).collect()
    with pytest.raises(EnvironmentFault, match=message):
        play(agent, env, 2, seeds=[1, 2], action_mask=source)


def test_one_component_without_legal_choices_is_named() -> None:
    space = spaces.MultiDiscrete([2, 3])
    masks = ActionMasks(MaskSource(_showing(space, np.array([1, 0, 0, 0, 0])), "info"))
    with pytest.raises(EnvironmentFault, match="env 0 masks every choice of an action at step 7"):
        masks.read(None, {"action_mask": np.array([[1, 0, 0, 0, 0]])}, np.ones(1, bool), 7)


# ---------------------------------------------------------------- forms


def _showing(space: Space, mask: Any) -> VectorEnv:
    """A vector environment of one copy whose first info has a mask, which a method returns, too."""

    class Shows(Count):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = space

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            return super().reset(**kwargs)[0], {"action_mask": mask}

        def legal(self) -> Any:
            return mask

    return SyncVectorEnv([Shows], autoreset_mode=AutoresetMode.SAME_STEP)


def a(*values: int) -> np.ndarray:
    return np.array(values, np.int8)


FORMS: list[tuple[Space, Any, list[int]]] = [
    (spaces.Discrete(3, start=4), a(1, 0, 1), [1, 0, 1]),
    (spaces.Discrete(3), [True, False, False], [1, 0, 0]),
    (spaces.MultiDiscrete([2, 3]), a(1, 0, 0, 1, 1), [1, 0, 0, 1, 1]),
    (spaces.MultiDiscrete([2, 3]), (a(1, 0), a(0, 1, 1)), [1, 0, 0, 1, 1]),
    (spaces.MultiDiscrete([[2, 3], [1, 2]]), ((a(1, 0), a(0, 1, 1)), (a(1), a(0, 1))), [1, 0, 0, 1, 1, 1, 0, 1]),
    # 0 and 1 are the only value, 2 stands for both
    (spaces.MultiBinary(3), a(0, 1, 2), [1, 0, 0, 1, 1, 1]),
    (spaces.MultiBinary(3), a(1, 0, 0, 1, 1, 1), [1, 0, 0, 1, 1, 1]),
    (spaces.MultiBinary((2, 1)), a(0, 1).reshape(2, 1), [1, 0, 0, 1]),
    (spaces.Tuple((spaces.Discrete(2), spaces.MultiDiscrete([2, 1]))), (a(0, 1), (a(1, 0), a(1))), [0, 1, 1, 0, 1]),
    (spaces.Tuple((spaces.Discrete(2), THREE)), a(0, 1, 1, 0, 0), [0, 1, 1, 0, 0]),
    (
        MIXED,
        {"move": None, "hand": (a(1, 0, 0), a(2, 0)), "keys": (a(1, 0), a(1, 1, 0)), "look": None},
        [1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0],
    ),
    # a part whose mask is None may do all
    (
        MIXED,
        {"move": None, "hand": None, "keys": (a(1, 0), a(1, 1, 0)), "look": None},
        [1] * 7 + [1, 0, 1, 1, 0],
    ),
]


@pytest.mark.parametrize("source", ["info", "method:legal"])
@pytest.mark.parametrize(("space", "mask", "expected"), FORMS, ids=[f"{s}-{i}" for i, (s, *_) in enumerate(FORMS)])
def test_masks_in_every_form(space: Space, mask: Any, expected: list[int], source: str) -> None:
    stepper = VectorStepper(_showing(space, mask), source)
    stepper.reset([1])
    assert stepper.action_masks is not None and stepper.action_masks.astype(int).tolist() == [expected]
    if isinstance(mask, dict | tuple) or (isinstance(mask, np.ndarray) and isinstance(space, spaces.Discrete)):
        space.seed(0)  # what Gymnasium takes it for is the same
        assert all(stepper.action_masks[0, chosen(space, space.sample(mask))].all() for _ in range(20))


@pytest.mark.parametrize(
    ("space", "mask", "message"),
    [
        (spaces.Discrete(3), a(1, 1), "2 entries for the 3 choices of Discrete"),
        (spaces.MultiDiscrete([2, 3]), (a(1, 0), a(1, 0)), "4 entries for the 5 choices"),
        (spaces.Tuple((THREE, THREE)), (a(1, 1, 1),), "shorter"),
        (spaces.Dict({"a": THREE, "b": THREE}), {"a": a(1, 1, 1)}, "'b'"),
        (spaces.Dict({"a": THREE, "b": THREE}), a(1, 1, 1, 1, 1), "a flat array of 5 entries for 6 choices"),
        (spaces.Tuple((THREE, THREE)), a(1, 1, 1, 1, 1, 1, 1), "a flat array of 7 entries for 6 choices"),
    ],
    ids=str,
)
def test_a_mask_that_does_not_fit_is_named(space: Space, mask: Any, message: str) -> None:
    with pytest.raises(
        EnvironmentFault, match=f"env 0 gave an action mask that does not fit .* at step 0: .*{message}"
    ):
        VectorStepper(_showing(space, mask)).reset([1])


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_nested_masks_need_not_be_given_where_nobody_acts(mode: AutoresetMode) -> None:
    class Nested(Count):
        def __init__(self, length: int) -> None:
            super().__init__(length)
            self.action_space = spaces.MultiDiscrete([2, 3])

        def _info(self) -> dict[str, Any]:
            return {"action_mask": (a(1, 0), np.roll(a(1, 0, 0), self.t))}

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            return super().reset(**kwargs)[0], self._info()

        def step(self, action: Any) -> Any:
            assert action.tolist() == [0, self.t % 3]
            *result, _ = super().step(action)
            return *result, {} if result[2] else self._info()

    env = vector([lambda: Nested(2), lambda: Nested(3)], mode)
    stepper = VectorStepper(env)
    stepper.reset([1, 2])
    for _ in range(9):
        assert stepper.action_masks is not None
        stepper.step(np.stack([stepper.action_masks[:, :2].argmax(1), stepper.action_masks[:, 2:].argmax(1)], 1))


# ---------------------------------------------------------------- never ignored


def test_masks_that_are_asked_for_and_not_given() -> None:
    env = vector([Count, Count])
    agent = agent_of(env.single_observation_space, env.single_action_space, "gaussian")
    with pytest.raises(EnvironmentFault, match=r"env 0 gave no info\['action_mask'\] at step 0"):
        Collector(env, agent, 5, torch.Generator(), [1, 2], "info")
    with pytest.raises(EnvironmentFault, match=r"env 0 gave no info\['action_mask'\] at step 0"):
        play(agent, env, 2, seeds=[1, 2], action_mask="info")
    with pytest.raises(EnvironmentFault, match="calling legal failed at step 0: AttributeError"):
        play(agent, env, 2, seeds=[1, 2], action_mask="method:legal")
    with pytest.raises(ConfigError, match="'legal' and others"):
        observed_space(env.single_observation_space, "observation:legal")
    native = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    with pytest.raises(ConfigError, match="needs copies to call; set"):
        VectorStepper(native, "method:legal")


@pytest.mark.parametrize("source", SOURCES)
def test_masks_need_discrete_actions(source: str) -> None:
    env = gymnasium.make_vec("Pendulum-v1", 2)
    with pytest.raises(ConfigError, match=f"{source} needs discrete actions"):
        VectorStepper(env, source)


class Late(Forbidden):
    """Tells what is legal only after the first step."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return super().reset(**kwargs)[0], {}


def test_a_mask_that_comes_late_is_not_ignored() -> None:
    stepper = VectorStepper(vector([Late]))
    stepper.reset([1])
    with pytest.raises(EnvironmentFault, match="at step 1, but none before"):
        stepper.step(np.array([3]))
    free = VectorStepper(vector([Late]), "none")
    free.reset([1])
    free.step(np.array([3]))
    assert free.action_masks is None


def test_a_mask_of_continuous_actions_is_not_ignored() -> None:
    env = _showing(spaces.Box(-1.0, 1.0, (2,)), a(1, 0))
    with pytest.raises(EnvironmentFault, match="but the actions are continuous"):
        VectorStepper(env).reset([1])
    VectorStepper(env, "none").reset([1])


# ---------------------------------------------------------------- everywhere


class Told(gymnasium.Env):
    """100 steps; the reward is 1 for the one action that is legal, drawn at random."""

    def __init__(self, action_space: Space) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Dict({"nothing": spaces.Discrete(1), "t": spaces.Box(0.0, 100.0, (1,))})
        self.t = 0

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        sizes = choices_of(self.action_space)
        self.mask = np.concatenate([np.arange(n) == self.np_random.integers(n) for n in sizes])
        return {"nothing": 0, "t": np.float32([self.t])}, {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._shown()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        hit = self.mask[chosen(self.action_space, action)].all()
        observation, info = self._shown()
        return observation, float(hit), False, self.t >= 100, info


@pytest.mark.parametrize("deterministic", [True, False], ids=["mode", "sample"])
@pytest.mark.parametrize(
    "space", [spaces.Discrete(20), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), MIXED], ids=str
)
def test_where_one_action_is_legal_an_untrained_agent_takes_it(space: Space, deterministic: bool) -> None:
    env = vector([lambda: Told(space)] * 2)
    agent = agent_of(env.single_observation_space, space, "gaussian")
    episodes = play(agent, env, 2, seeds=[1, 2], deterministic=deterministic)
    assert episodes.returns.tolist() == [100.0, 100.0]
    blind = play(agent, env, 2, seeds=[1, 2], deterministic=deterministic, action_mask="none")
    assert blind.returns.max() < 60.0


@pytest.mark.parametrize("source", SOURCES)
def test_training_evaluation_prediction_and_films_never_take_an_illegal_action(source: str, tmp_path: Path) -> None:
    settings = EnvConfig("tests.kit.rich_envs:Forbidden", 2, "sync", {"source": source}, action_mask=source)
    data = RolloutDataModule(settings, num_steps=32, rollouts_per_epoch=2, evaluation={"episodes": 6, "num_envs": 3})
    model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 32, "epochs": 2})
    trainer = make_trainer(limit_val_batches=1)
    trainer.fit(model, data)
    assert trainer.callback_metrics["eval/return_mean"] == 4.0
    assert trainer.test(model, data, verbose=False)[0]["test/episodes"] == 100.0
    # make the illegal action the favourite, so that prediction without the mask would take it
    with torch.no_grad():
        model.policy.network.actor_output.weight.zero_()
        model.policy.network.actor_output.bias.copy_(torch.tensor([9.0, 0.0, 1.0]))
    (predicted,) = trainer.predict(model, data)
    assert predicted.tolist() == [4, 4, 4]  # at time 0 the first action, 2, is forbidden
    (batch,) = data.predict_dataloader()
    assert isinstance(batch, MaskedObservations)
    assert model.policy.predict(batch.observations)[0].tolist() == [2, 2, 2]
    frames: list[np.ndarray] = []
    with Stage(settings) as stage:
        assert stage.play(model.policy, 2, sinks=[frames.append]).returns.tolist() == [4.0, 4.0]
    assert len(frames) == 10


def test_the_commands_use_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    arguments = [
        *("env.id=tests.kit.rich_envs:Forbidden", "env.kwargs.source=observation:legal", "env.num_envs=2"),
        *("env.action_mask=observation:legal", "rollout.num_steps=32", "update.minibatch_size=32", "update.epochs=1"),
        *("evaluation.episodes=2", "evaluation.final_episodes=2", "total_env_steps=64", "rollouts_per_epoch=1"),
        *("trainer.enable_progress_bar=false", "trainer.accelerator=cpu", f"run_dir={run_dir}"),
    ]
    assert train.main(arguments) == 0
    checkpoint = str(run_dir / "checkpoints" / "last.ckpt")
    assert cli.main(["evaluate", checkpoint, "--episodes", "3"]) == 0
    assert '"return_mean": 4.0' in capsys.readouterr().out
    # what is taken away asks for masks because the agent was trained with them
    for arguments, inputs in (([], "observations.t, action_masks"), (["--no-action-masks"], "observations.t")):
        assert cli.main(["export", checkpoint, "--format", "torch", *arguments]) == 0
        assert f": {inputs} -> actions" in capsys.readouterr().out


def test_masks_come_back_after_a_process_has_died(tmp_path: Path) -> None:
    kwargs = {"dies_before": str(tmp_path / "died")}
    env = make_vector_env("tests.kit.rich_envs:Forbidden", 2, backend="async", kwargs=kwargs, max_restarts=1)
    try:
        stepper = VectorStepper(env, "info")
        stepper.reset([1, 2])
        for _ in range(3):
            stepper.step(2 + stepper.action_masks.argmax(1))
            assert stepper.action_masks.any(1).all()
        assert (tmp_path / "died").exists()
    finally:
        env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("source", SOURCES)
def test_the_mask_of_the_next_action_comes_back_on_resuming(source: str, mode: AutoresetMode) -> None:
    envs = [forbidden(source, mode) for _ in range(2)]
    here, there = (VectorStepper(env, source) for env in envs)
    here.reset([1, 2])
    for _ in range(2):
        here.step(2 + here.action_masks.argmax(1))
    there.reset([3, 4])
    assert not np.array_equal(there.action_masks, here.action_masks)
    assert there.load_state_dict(here.state_dict()) == ""
    for _ in range(6):
        np.testing.assert_array_equal(there.action_masks, here.action_masks)
        for stepper in (here, there):
            stepper.step(2 + stepper.action_masks.argmax(1))
    for env in envs:
        env.close()


# ---------------------------------------------------------------- the distribution


def test_masking_renormalizes_and_leaves_no_trace() -> None:
    head = make_action_head(spaces.Discrete(3))

    def probabilities(p: list[float], mask: list[bool] | None) -> list[float]:
        logits = torch.tensor([p]).clamp(min=1e-30).log()
        given = None if mask is None else torch.tensor([mask])
        parameters = head.parameters_of(logits, given)
        return head.log_prob(parameters.expand(3, -1), torch.arange(3)).exp().tolist()

    assert probabilities([0.2, 0.2, 0.6], [False, True, True]) == pytest.approx([0.0, 0.25, 0.75])
    assert probabilities([1.0, 0.0, 0.0], [False, True, True]) == pytest.approx([0.0, 0.5, 0.5])
    assert probabilities([0.2, 0.2, 0.6], [True, False, True]) == pytest.approx([0.25, 0.0, 0.75])
    assert probabilities([0.2, 0.2, 0.6], None) == pytest.approx([0.2, 0.2, 0.6])


def test_many_actions_of_which_one_is_legal() -> None:
    head = make_action_head(spaces.Discrete(992))
    logits = torch.full((1, 992), -17.0)
    logits[0, 3] = 20.0
    mask = torch.arange(992).unsqueeze(0) == 600
    parameters = head.parameters_of(logits.requires_grad_(), mask)
    assert head.log_prob(parameters, torch.tensor([600])).item() == 0.0
    assert head.entropy(parameters).item() == 0.0 and head.mode(parameters).item() == 600
    assert head.log_prob(parameters, torch.tensor([3])).item() < -1e8
    samples = head.sample(parameters.expand(1000, -1), head.noise((1000,), torch.Generator().manual_seed(0)))
    assert (samples == 600).all()
    (head.entropy(parameters) + head.log_prob(parameters, torch.tensor([600]))).sum().backward()
    assert (logits.grad == 0.0).all()
