"""The update: ratio 1 before the first step, counts, gradient clipping, KL control, schedules, bad numbers."""

import math
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.support.errors import ConfigError, NonFiniteError, UnsupportedSpaceError
from tests.kit.collecting import transitions
from tests.kit.envs import Count
from tests.kit.resuming import same
from tests.kit.training import Heavier, Recording, Weighted, eager_and_compiled, make_pair, make_trainer, sharpen


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    ("precision", "worst", "mean"), [("32-true", 1e-5, 1e-6), ("bf16-mixed", 1e-4, 1e-5)], ids=["32", "bf16"]
)
@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_first_minibatch_has_ratio_one_and_no_kl(env, precision, worst, mean, shared):
    model, data = make_pair(env, Recording, policy={"shared_trunk": shared})
    sharpen(model)
    make_trainer(precision=precision).fit(model, data)
    ratios = model.log_ratios[0].exp()
    assert (ratios - 1.0).abs().max() <= worst
    assert (ratios - 1.0).abs().mean() <= mean
    assert torch.equal(model.reports[0].log_ratios, model.log_ratios[0])
    # and the test can fail: one optimizer step later the policy has moved
    assert (model.log_ratios[-1].exp() - 1.0).abs().max() > 1e-4


DECAY = {"kind": "piecewise", "points": [[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]]}


@pytest.mark.parametrize("distribution", ["gaussian", "state_gaussian"])
def test_the_standard_deviation_decays_between_iterations(distribution):
    model, data = make_pair(
        "Pendulum-v1",
        Recording,
        update={"epochs": 1, "minibatch_size": 64, "std_decay": DECAY},
        optimizer={"learning_rate": 0.0},
        policy={"distribution": distribution, "log_std_init": -0.5},
        total_env_steps=8 * 64,
    )
    make_trainer(max_epochs=8).fit(model, data)
    stds = torch.stack([rollout.distribution[..., 1].mean() for rollout in model.rollouts])
    # nothing up to half of the budget, then 1 log unit in 4 iterations
    by_hand = -0.5 - torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75])
    torch.testing.assert_close(stds, by_hand, atol=0.03, rtol=0.0)  # a state may move it a little
    # what is learnt from was collected with the standard deviation it is evaluated with
    assert all((report.log_ratios.exp() - 1.0).abs().max() <= 1e-5 for report in model.reports)
    assert model.policy.head.log_std.item() == pytest.approx(-0.5 - 1.0)


def test_a_prolonged_run_goes_back_to_where_the_schedule_of_its_standard_deviation_is(tmp_path):
    def run(budget: int, epochs: int, ckpt: str | None = None) -> PPO:
        settings = {"optimizer": {"learning_rate": 0.0}, "policy": {"log_std_init": -0.5}}
        settings["update"] = {"minibatch_size": 16, "epochs": 2, "std_decay": DECAY}
        model, data = make_pair("Pendulum-v1", total_env_steps=budget * 64, **settings)
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model

    assert run(4, 4).policy.head.log_std.item() == pytest.approx(-1.5)
    # after 6 of 8 iterations half of the decay is due
    assert run(8, 6, str(tmp_path / "4.ckpt")).policy.head.log_std.item() == pytest.approx(-1.0)
    model = PPO.load_from_checkpoint(tmp_path / "6.ckpt", weights_only=True)
    assert model.std_decay == pytest.approx(0.5)


def test_a_trust_region_is_not_left_by_a_decay():
    model, data = make_pair("Pendulum-v1", objective="trpo", total_env_steps=2 * 64)
    make_trainer(max_epochs=2).fit(model, data)
    assert model.std_decay == 0.0


def test_acting_in_another_precision_would_break_the_ratio():
    """The control of the test above: collecting outside the precision context is noticed."""
    model, _ = make_pair("CartPole-v1", Recording)
    sharpen(model)

    class Careless(RolloutDataModule):
        def train_dataloader(self):
            stream = super().train_dataloader()
            stream.precision = nullcontext
            return stream

    careless = Careless(env="CartPole-v1", num_envs=4, num_steps=16, rollouts_per_epoch=1)
    make_trainer(precision="bf16-mixed").fit(model, careless)
    assert (model.log_ratios[0].exp() - 1.0).abs().max() > 1e-3


def test_counts_of_steps_rollouts_and_env_steps():
    model, data = make_pair("Pendulum-v1", Recording, rollouts_per_epoch=3)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, data)
    # 6 iterations x 2 epochs x (64 / 16 = 4) minibatches
    assert trainer.global_step == len(model.reports) == 6 * 2 * 4
    assert model.iterations == model.policy.version == len(model.rollouts) == 6
    assert model.env_steps == 6 * 64  # Pendulum is stepped in SAME_STEP mode: no filler rows
    assert [r.policy_version for r in model.rollouts] == [0, 1, 2, 3, 4, 5]


def test_filler_rows_are_not_env_steps():
    model, data = make_pair("CartPole-v1", Recording, rollouts_per_epoch=4)
    make_trainer().fit(model, data)
    invalid = sum(int((~r.valid).sum()) for r in model.rollouts)
    assert invalid > 0
    assert model.env_steps == 4 * 64 - invalid


def test_env_steps_never_exceed_the_budget():
    model, data = make_pair("Pendulum-v1", total_env_steps=300, rollouts_per_epoch=3)
    trainer = make_trainer(max_epochs=-1)
    trainer.fit(model, data)
    assert model.env_steps == 256  # four rollouts of 64; a fifth would make 320
    assert trainer.current_epoch == 2


def test_weights_change_and_are_finite():
    model, data = make_pair()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    make_trainer().fit(model, data)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@eager_and_compiled
def test_gradient_norm_after_clipping(precision, compiled):
    norms = []

    class Spy(PPO):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            norms.append(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in self.parameters()])).item())

    update = {"epochs": 1, "minibatch_size": 64, "max_grad_norm": 0.05}
    model, data = make_pair(model=Spy, update=update, compile=compiled)
    trainer = make_trainer(precision=precision)
    trainer.fit(model, data)
    assert trainer.callback_metrics["update/grad_norm"] > 0.05
    assert norms == [pytest.approx(0.05, rel=1e-4)]


def test_one_epoch_one_minibatch_is_the_advantage_actor_critic_gradient():
    """With ratio 1 nothing is clipped: the gradient is that of -log pi A + c1 (V - R)^2 / 2."""
    gradients = []

    class Spy(Recording):
        def on_before_optimizer_step(self, optimizer):
            gradients.append({name: p.grad.clone() for name, p in self.policy.named_parameters()})
            super().on_before_optimizer_step(optimizer)

    model, data = make_pair(model=Spy, update={"epochs": 1, "minibatch_size": 64})
    trainer = make_trainer()
    initial = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    trainer.fit(model, data)
    rollout = model.rollouts[0]
    reference, _ = make_pair()
    reference.policy.load_state_dict({**reference.policy.state_dict(), **initial})
    valid = rollout.valid.flatten()
    observations = rollout.observations.flatten(0, 1)[valid]
    now = reference.policy.evaluate(transitions(observations, rollout.actions.flatten()[valid]))
    advantages, returns = rollout.advantages.flatten()[valid], rollout.returns.flatten()[valid]
    loss = -(now.log_probs * advantages).mean() + 0.5 * 0.5 * (now.values - returns).square().mean()
    loss.backward()
    for name, parameter in reference.policy.named_parameters():
        torch.testing.assert_close(gradients[0][name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_target_kl_ends_the_iteration_after_an_epoch():
    update = {"epochs": 10, "minibatch_size": 16, "target_kl": 1e-8}
    model, data = make_pair(model=Recording, update=update)
    make_trainer().fit(model, data)
    assert len(model.reports) == 4  # the first epoch already exceeds the target
    update = {"epochs": 10, "minibatch_size": 16, "target_kl": 1e3}
    model, data = make_pair(model=Recording, update=update)
    make_trainer().fit(model, data)
    assert len(model.reports) == 40


@pytest.mark.parametrize(("target", "factor"), [(1e-9, 1 / 1.5), (1e3, 1.5)], ids=["above", "below"])
def test_kl_steers_the_learning_rate_of_the_optimizer(target, factor):
    rate = {"kind": "adaptive_kl", "start": 1e-3, "target_kl": target}
    model, data = make_pair(optimizer={"learning_rate": rate})
    trainer = make_trainer()
    trainer.fit(model, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * factor)


def test_schedules_follow_env_steps():
    seen = []

    class Spy(PPO):
        def minibatch_loss(self, minibatch):
            seen.append((float(self.coefficients.now["clip_range"]), self.trainer.optimizers[0].param_groups[0]["lr"]))
            return super().minibatch_loss(minibatch)

    linear = {"kind": "linear", "start": 0.4, "end": 0.0}
    model, data = make_pair(
        "Pendulum-v1",
        Spy,
        update={"epochs": 1, "minibatch_size": 64, "clip_range": linear},
        optimizer={"learning_rate": {"kind": "linear", "start": 1e-3, "end": 0.0}},
        total_env_steps=256,
    )
    make_trainer(max_epochs=-1).fit(model, data)
    # progress 0, 64/256, 128/256, 192/256
    assert [round(clip, 6) for clip, _ in seen] == [0.4, 0.3, 0.2, 0.1]
    assert [rate for _, rate in seen] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_without_a_step_budget_schedules_follow_epochs():
    rates = []

    class Spy(PPO):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    model, data = make_pair(
        model=Spy, rollouts_per_epoch=2, optimizer={"learning_rate": {"kind": "linear", "start": 1.0e-3, "end": 0.0}}
    )
    make_trainer(max_epochs=2).fit(model, data)
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_the_epochs_of_every_fit_are_a_budget_of_their_own(tmp_path):
    rates = []

    class Spy(PPO):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    linear = {"kind": "linear", "start": 1.0e-3, "end": 0.0}
    falling = pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    model, data = make_pair(model=Spy, rollouts_per_epoch=2, optimizer={"learning_rate": linear})
    first = make_trainer(max_epochs=2)
    first.fit(model, data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    make_trainer(max_epochs=2).fit(model, data)
    assert rates[:4] == falling and rates[4:] == falling
    # a loaded agent begins anew, a resumed fit goes on, and so does a Trainer that is given more epochs
    rates.clear()
    loaded = Spy.load_from_checkpoint(tmp_path / "first.ckpt", weights_only=True)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(loaded, data)
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    resumed = Spy.load_from_checkpoint(tmp_path / "second.ckpt", weights_only=True)
    make_trainer(max_epochs=2).fit(resumed, data, ckpt_path=tmp_path / "second.ckpt", weights_only=True)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(loaded, data)
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4, 5e-4, 2.5e-4])


def test_a_fit_that_a_callback_ends_at_once_has_no_budget_to_tell_of():
    class Enough(pl.Callback):
        def on_train_start(self, trainer, module):
            trainer.should_stop = True

    model, data = make_pair(total_env_steps=None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make_trainer(max_epochs=1, callbacks=[Enough()]).fit(model, data)
    assert not any("nothing is trained" in str(warning.message) for warning in told)


def test_a_budget_that_is_used_up_is_told():
    model, data = make_pair(total_env_steps=128)
    make_trainer(max_epochs=-1).fit(model, data)
    with pytest.warns(UserWarning, match="nothing is trained: 124 steps .* would exceed total_env_steps=128; raise it"):
        make_trainer(max_epochs=-1).fit(model, data)
    assert model.env_steps == 124


@eager_and_compiled
def test_non_finite_loss_stops_before_anything_is_lost(compiled):
    class Broken(PPO):
        def value_loss(self, values, minibatch):
            loss = super().value_loss(values, minibatch)
            return loss * torch.where(self.poison > 0, math.nan, 1.0)

    model, data = make_pair(model=Broken, rollouts_per_epoch=2, compile=compiled)
    model.poison = torch.tensor(0.0)
    states = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            optimizer = trainer.optimizers[0].state_dict()["state"]
            states.append(
                (
                    {k: v.clone() for k, v in module.state_dict().items()},
                    {i: {k: v.clone() for k, v in s.items()} for i, s in optimizer.items()},
                )
            )
            module.poison.fill_(1.0)

    trainer = make_trainer(callbacks=[Watch()])
    with pytest.raises(
        NonFiniteError, match="loss/value is nan in minibatch 1 of update epoch 1, iteration 2"
    ) as error:
        trainer.fit(model, data)
    assert "\n" not in str(error.value)
    weights, moments = states[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name]), name
    for index, state in trainer.optimizers[0].state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, moments[index][name])


def test_overriding_policy_loss_changes_training():
    class Frozen(PPO):
        def policy_loss(self, terms):
            return super().policy_loss(terms) * 0.0

    model, data = make_pair(model=Frozen)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    make_trainer().fit(model, data)
    after = dict(model.policy.named_parameters())
    assert torch.equal(after["network.actor_output.weight"], before["network.actor_output.weight"])
    assert not torch.equal(after["network.critic_output.weight"], before["network.critic_output.weight"])


def test_overriding_configure_optimizers_is_respected():
    class Plain(PPO):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.125)

    model, data = make_pair(model=Plain)
    trainer = make_trainer()
    trainer.fit(model, data)
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125
    assert trainer.global_step == 8


def test_observation_statistics_count_each_observation_once_and_only_between_iterations():
    seen = []

    class Spy(Recording):
        def minibatch_loss(self, minibatch):
            seen.append(float(self.policy.inputs.normalizers[""].count))
            return super().minibatch_loss(minibatch)

    model, data = make_pair("CartPole-v1", Spy, rollouts_per_epoch=3)
    make_trainer().fit(model, data)
    counted = [torch.cat((r.observations[r.valid], r.final_observations())).double() for r in model.rollouts]
    rows = [len(observations) for observations in counted]
    assert sum(rows) > sum(int(r.valid.sum()) for r in model.rollouts)
    assert sorted(set(seen)) == [0, rows[0], rows[0] + rows[1]]
    normalizer = model.policy.inputs.normalizers[""]
    everything = torch.cat(counted)
    assert float(normalizer.count) == len(everything)
    torch.testing.assert_close(normalizer.mean, everything.mean(0))
    torch.testing.assert_close(normalizer.variance, everything.var(0, correction=0))


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("env", "objective"),
    [
        pytest.param("CartPole-v1", "clip", marks=pytest.mark.representative),
        ("Pendulum-v1", "clip"),
        ("Pendulum-v1", "kl_penalty"),
        ("CartPole-v1", "adaptive_kl"),
        ("Pendulum-v1", "policy_gradient"),
        ("Pendulum-v1", "surrogate"),
    ],
)
def test_compiled_equals_eager(env, objective):
    """Same data, same initial weights: after 3 iterations the weights agree to float tolerance."""
    weights = []
    for compiled in (False, True):
        update = {"epochs": None if objective == "policy_gradient" else 2, "minibatch_size": 16}
        model, data = make_pair(env, rollouts_per_epoch=3, compile=compiled, objective=objective, update=update)
        make_trainer().fit(model, data)
        if objective == "adaptive_kl":
            assert model.objective.coefficient != 1.0  # it has adapted
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)


class Tied(torch.nn.Module):
    """Actor and critic keep one layer under two names."""

    def __init__(self, observation_space, num_outputs):
        super().__init__()
        self.actor, self.critic = (
            torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, n)]) for n in (num_outputs, 1)
        )
        self.critic[0].weight = self.actor[0].weight
        self.twin = self.actor[0]
        self.shift = self.slope = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, inputs):
        actor, critic = torch.tanh(self.twin(inputs)), torch.tanh(self.critic[0](inputs))
        return self.actor[1](actor) * self.slope + self.shift, self.critic[1](critic).squeeze(-1)


@pytest.mark.compiled
@pytest.mark.parametrize("policy", [{"shared_trunk": True}, {"network": f"{__name__}.Tied"}], ids=["trunk", "tied"])
def test_shared_parameters_are_compiled(policy):
    weights = []
    for compiled in (False, True):
        model, data = make_pair(rollouts_per_epoch=2, compile=compiled, policy=policy)
        make_trainer().fit(model, data)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)


@pytest.mark.compiled
def test_compiling_happens_once_although_schedules_move():
    linear = {"kind": "linear", "start": 0.4, "end": 0.0}
    model, data = make_pair(
        rollouts_per_epoch=4,
        compile=True,
        update={"epochs": 1, "minibatch_size": 16, "clip_range": linear},
        optimizer={"learning_rate": {"kind": "linear", "start": 1e-3, "end": 0.0}},
    )

    class NoMoreCompiling(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            torch.compiler.set_stance("fail_on_recompile")  # from the first step on

    try:
        make_trainer(callbacks=[NoMoreCompiling()]).fit(model, data)
    finally:
        torch.compiler.set_stance("default")
    assert model.iterations == 4
    assert model.compile_seconds > 0


@pytest.mark.compiled
def test_a_compiled_loss_sees_what_a_callback_changes_between_iterations():
    model, data = make_pair(model=Weighted, rollouts_per_epoch=2, compile=True)
    heavier = Heavier(1.0, 0.0)
    make_trainer(callbacks=[heavier]).fit(model, data)
    assert heavier.seen == pytest.approx([1.0, 2.0])


class Untraceable(PPO):
    """Chooses by the value of a tensor."""

    def policy_loss(self, terms):
        if terms.advantages.mean().item() > 1e9:
            raise AssertionError
        return super().policy_loss(terms)


def weights_after_training(model_type=PPO, **kwargs):
    model, data = make_pair(
        model=model_type, rollouts_per_epoch=2, update={"epochs": 1, "minibatch_size": 64}, **kwargs
    )
    make_trainer().fit(model, data)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_loss_that_cannot_be_traced_goes_on_uncompiled_with_one_line():
    with pytest.warns(UserWarning, match="compile: ") as warned:
        weights = weights_after_training(Untraceable, compile=True)
    (message,) = (str(w.message) for w in warned if w.category is UserWarning)
    assert len(message.splitlines()) == 1
    assert "the loss cannot be traced" in message and message.endswith("training continues uncompiled")
    assert torch.equal(weights, weights_after_training(Untraceable))


def test_without_a_c_compiler_training_goes_on_uncompiled_with_one_line(monkeypatch, tmp_path):
    from torch._inductor import config, cpp_builder

    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        # what PATH is searched for, whatever CXX says
        with config.patch({"cpp.cxx": (None, "g++")}), pytest.warns(UserWarning, match="compile: ") as warned:
            weights = weights_after_training(compile=True)
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    assert [str(w.message) for w in warned if w.category is UserWarning] == [
        "compile: no C++ compiler was found, install g++; training continues uncompiled"
    ]
    assert torch.equal(weights, weights_after_training())


def test_what_a_ppo_holds_is_in_its_own_constructor():
    assert PPO.__bases__ == (pl.LightningModule,)
    model, _ = make_pair()
    assert (model.env_steps, model.iterations, list(model.recent_returns)) == (0, 0, [])
    assert not any(key.startswith("evaluation") for key in model.state_dict())  # files of before load


@pytest.mark.compiled
def test_compiling_draws_no_random_numbers():
    """Else a resumed run, which compiles again, would go on with other numbers than one that was never stopped."""

    class Prepared(PPO):
        def training_step(self, rollout, batch_idx):
            state = torch.get_rng_state()
            update, _ = self._prepare(rollout.flatten())
            assert update.latest_compile_seconds > 0.0
            self.unchanged = torch.equal(torch.get_rng_state(), state)
            update.backward(rollout.flatten(), torch.arange(16), torch.ones(()))
            self.drawn = not torch.equal(torch.get_rng_state(), state)

    model, data = make_pair(model=Prepared, policy={"dropout": 0.1}, compile=True)
    make_trainer().fit(model, data)
    assert model.unchanged
    assert model.drawn


def test_trainer_flags_that_cannot_work_name_our_setting():
    for flags, ours in (
        ({"gradient_clip_val": 0.5}, "update.max_grad_norm"),
        ({"accumulate_grad_batches": 2}, "update.micro_batch_size"),
        ({"precision": "bf16-true"}, "bf16-mixed"),
    ):
        model, data = make_pair()
        with pytest.raises(ConfigError, match=ours):
            make_trainer(**flags).fit(model, data)


def test_checkpoint_callback_that_would_never_fire_is_explained(tmp_path):
    callback = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=5)
    model, data = make_pair()
    with pytest.raises(ConfigError, match=r"every_n_train_steps=5.*8 optimizer steps per iteration"):
        make_trainer(callbacks=[callback], enable_checkpointing=True).fit(model, data)


def test_uneven_minibatches_are_refused():
    model, data = make_pair(update={"minibatch_size": 63})
    with pytest.raises(ConfigError, match=r"63 does not divide.*the nearest size that does is 64"):
        make_trainer().fit(model, data)


def test_unsupported_spaces_are_named():
    box = spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(UnsupportedSpaceError, match="Text"):
        PPO(spaces.Text(4), spaces.Discrete(2))
    with pytest.raises(UnsupportedSpaceError, match="Graph"):
        PPO(box, spaces.Graph(box, None))


def test_agent_of_another_environment_is_refused():
    model, _ = make_pair("Pendulum-v1")
    _, data = make_pair("CartPole-v1")
    with pytest.raises(Exception, match="made for the observation space"):
        make_trainer().fit(model, data)


def test_already_built_vector_env_in_python():
    from gymnasium.vector import SyncVectorEnv

    pl.seed_everything(0, verbose=False)
    env = SyncVectorEnv([lambda: Count(5)] * 2)
    data = RolloutDataModule(env=env, num_steps=8, rollouts_per_epoch=2)
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 16})
    make_trainer(limit_val_batches=1.0).fit(model, data)
    assert model.iterations == 2
    # 16 steps per env: 5-step episodes and a filler row after each, so 14 of 16 rows are valid
    assert model.env_steps == 2 * 14
    assert list(model.recent_lengths) == [5, 5, 5, 5]
    env.reset()  # not closed: it is the user's
    env.close()


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
def test_collecting_neither_drops_units_nor_moves_batch_statistics():
    """200 training steps change batch statistics, rollouts do not, and a module frozen by hand stays frozen."""
    model, data = make_pair(model=Recording, rollouts_per_epoch=2)
    trunk = model.policy.network.actor_trunk.mlp
    normalization, frozen = torch.nn.BatchNorm1d(64), torch.nn.BatchNorm1d(64).eval()
    trunk.append(normalization).append(torch.nn.Dropout(0.5)).append(frozen)
    before = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            before.append((normalization.running_mean.clone(), batch))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            before.append((normalization.running_mean.clone(), batch))

    make_trainer(callbacks=[Watch()]).fit(model, data)
    (start, first), (after_update, _), (after_collecting, second), _ = before
    assert torch.equal(start, torch.zeros(64))
    assert not torch.equal(after_update, start)
    assert torch.equal(after_collecting, after_update)
    assert not frozen.training and torch.equal(frozen.running_mean, torch.zeros(64))
    for rollout in (first, second):  # nothing was dropped: units give one distribution, not a noisy one
        again = rollout.distribution.log_softmax(-1).gather(-1, rollout.actions[..., None])[..., 0]
        torch.testing.assert_close(again, rollout.log_probs)


def test_recomputed_advantages_are_those_of_the_current_critic():
    """Before the second epoch values, bootstraps and advantages are the ones a fresh estimate would give."""
    seen = []

    class Spy(Recording):
        def _estimate_again(self, rollout):
            batch = super()._estimate_again(rollout)
            seen.append((rollout, {k: v.clone() for k, v in self.policy.state_dict().items()}, batch))
            return batch

    update = {"epochs": 3, "minibatch_size": 16, "recompute_advantages": True, "normalize_advantages": False}
    model, data = make_pair("Pendulum-v1", Spy, update=update)
    make_trainer().fit(model, data)
    assert len(seen) == 2
    for rollout, weights, batch in seen:
        critic, _ = make_pair("Pendulum-v1")
        critic.policy.load_state_dict(weights)
        with torch.no_grad():
            values = critic.policy.value(rollout.observations.flatten(0, 1)).view(16, 4)
            last = critic.policy.value(rollout.boundary_observations)[:4]
        # no episode of Pendulum ends within 16 steps, so the advantage is the plain recursion
        advantage, expected = torch.zeros(4), []
        following = torch.cat((values[1:], last[None]))
        for t in range(15, -1, -1):
            delta = rollout.scaled_rewards[t] + rollout.gamma * following[t] - values[t]
            advantage = delta + rollout.gamma * rollout.gae_lambda * advantage
            expected.insert(0, advantage)
        torch.testing.assert_close(batch.advantages.view(16, 4), torch.stack(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch.returns.view(16, 4), torch.stack(expected) + values, rtol=1e-4, atol=1e-5)
    assert not torch.equal(seen[0][2].advantages, seen[1][2].advantages)


def test_a_scheduler_of_the_users_own_is_stepped_once_per_iteration():
    class Own(PPO):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    model, data = make_pair(model=Own, rollouts_per_epoch=3)
    trainer = make_trainer()
    trainer.fit(model, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**3)


def test_kl_is_measured_after_the_last_step():
    """With a single step per iteration the KL before it is 0 whatever the step does; what counts is the KL after it."""
    update = {"epochs": 1, "minibatch_size": 64}
    model, data = make_pair(model=Recording, update=update, optimizer={"learning_rate": 0.03})
    trainer = make_trainer()
    trainer.fit(model, data)
    torch.testing.assert_close(model.reports[0].log_ratios, torch.zeros(64), rtol=0.0, atol=1e-5)
    logged = float(trainer.callback_metrics["update/kl"])
    rollout = model.rollouts[0]
    fresh, _ = make_pair(update=update)
    weights = model.policy.state_dict()
    statistics = {k: v for k, v in fresh.policy.state_dict().items() if k.startswith("inputs.")}
    fresh.policy.load_state_dict({**weights, **statistics})  # the statistics moved after the measurement
    with torch.no_grad():
        now = fresh.policy.distribution(rollout.observations.flatten(0, 1))
        exact = fresh.policy.head.kl(rollout.distribution.flatten(0, 1), now)[rollout.valid.flatten()].mean()
    assert logged == pytest.approx(float(exact), rel=1e-3)
    assert logged > 1e-3


def test_wrong_environments_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"env: expected an id.* got int"):
        RolloutDataModule(env=3)
    from gymnasium.vector import SyncVectorEnv

    data = RolloutDataModule(env=SyncVectorEnv([lambda: Count(5)]), num_steps=8)
    with pytest.raises(ConfigError, match="evaluation_env: needed"):
        data.predict_dataloader()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"policy": {"dropout": 0.3}}, id="dropout"),
        pytest.param({"objective": "trpo", "update": {"minibatch_size": 16, "epochs": 2}}, id="trust region"),
        pytest.param({"objective": "adaptive_kl"}, id="adaptive KL"),
    ],
)
def test_resumed_training_is_the_same_bit_for_bit(settings, tmp_path):
    def run(epochs: int, ckpt: str | None = None):
        model, data = make_pair("Pendulum-v1", rollouts_per_epoch=2, total_env_steps=4 * 64, **settings)
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)
        return model, trainer

    whole, _ = run(2)
    _, half = run(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(2, str(tmp_path / "half.ckpt"))
    assert same(whole.state_dict(), resumed.state_dict())
    if settings.get("objective") == "adaptive_kl":
        assert resumed.objective.coefficient != 1.0


def test_a_run_resumed_at_its_end_saves_what_it_loaded(tmp_path):
    saved = []
    for name, loaded in (("first", None), ("again", tmp_path / "first.ckpt")):
        model, data = make_pair("Pendulum-v1", rollouts_per_epoch=2)
        trainer = make_trainer(max_epochs=1)
        trainer.fit(model, data, ckpt_path=loaded, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        saved.append(torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["ppo"])
    assert saved[0]["ranks"][0]["shuffle"] is not None and same(*saved)


def test_a_cooldown_follows_a_budget_that_grows(tmp_path):
    """What is steered is kept apart from its bound, so a run that goes on learns as fast as one that never stopped."""
    rate = {"kind": "adaptive_kl", "start": 1e-3, "maximum": 1e-3, "minimum": 1e-5, "target_kl": 1e3, "cooldown": 0.5}

    def rates(steps, path=None):
        used = {}

        class Spy(PPO):
            def training_step(self, rollout, batch_idx):
                super().training_step(rollout, batch_idx)
                used[self.env_steps] = self.trainer.callback_metrics["update/learning_rate"].item()

        model, data = make_pair(
            model=Spy, rollouts_per_epoch=4, optimizer={"learning_rate": rate}, total_env_steps=steps
        )
        trainer = make_trainer(max_epochs=-1)
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
        return used, trainer

    through, _ = rates(1024)
    short, trainer = rates(512)
    assert min(short.values()) < 0.5e-3
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = rates(1024, tmp_path / "half.ckpt")
    later = [*through.values()][len(short) :]  # copies that are reset do not step, so the steps differ by a few
    assert len(later) > 4 and [*resumed.values()] == pytest.approx(later, abs=2e-5)
    assert min(resumed.values()) < 2e-4
