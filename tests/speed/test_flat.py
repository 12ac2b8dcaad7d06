"""Parameters in one buffer, Adam over it, and updates without Lightning's hooks: the results are the ordinary ones."""

import copy

import pytorch_lightning as pl
import torch
from torch import nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.speed.flat import ALIGNMENT, FlatAdam, FlatParameters
from tests.kit.training import eager_and_compiled, make_trainer


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7), nn.Tanh(), nn.Linear(7, 1))
    return network.to(memory_format=torch.channels_last)


def loss_of(network: nn.Module) -> torch.Tensor:
    return network(torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))).square().mean()


def test_values_and_gradients_become_views_and_keep_their_values_and_layout():
    network, reference = make_network(), make_network()
    flat = FlatParameters(network.parameters())
    flat.attach()
    assert flat.values.numel() % ALIGNMENT == flat.gradients.numel() % ALIGNMENT == 0
    for p, q in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q) and p.stride() == q.stride()
        assert p.data_ptr() % (4 * ALIGNMENT) == flat.values.data_ptr() % (4 * ALIGNMENT)
    loss_of(network).backward()
    loss_of(reference).backward()
    assert flat.holds_gradients
    joined = flat.join([q.grad for q in reference.parameters()])
    torch.testing.assert_close(flat.gradients, joined)
    torch.testing.assert_close(
        torch.linalg.vector_norm(flat.gradients), nn.utils.get_total_norm([q.grad for q in reference.parameters()])
    )
    for piece, p in zip(flat.split(joined), network.parameters(), strict=True):
        torch.testing.assert_close(piece, p.grad)


def test_values_put_elsewhere_come_back_into_the_buffer():
    network = make_network()
    flat = FlatParameters(network.parameters())
    flat.attach()
    first = next(network.parameters())
    first.data = torch.ones_like(first)
    first.grad = None
    assert not flat.holds_gradients
    flat.attach()
    assert flat.holds_gradients and first.data_ptr() == flat.values.data_ptr()
    assert torch.equal(flat.values[: first.numel()], torch.ones(first.numel())) and torch.all(first == 1.0)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, flat: FlatParameters | None) -> None:
    if flat is None:
        optimizer.zero_grad()
    else:
        flat.attach()
        flat.gradients.zero_()
        optimizer.lay_out(flat)
    optimizer.step(lambda: loss_of(network).backward())


def test_flat_adam_is_adam_and_their_states_are_exchangeable():
    settings = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-5}
    mine, reference = make_network(), make_network()
    adam, flat_adam = torch.optim.Adam(reference.parameters(), **settings), FlatAdam(mine.parameters(), **settings)
    flat = FlatParameters(mine.parameters())
    for _ in range(3):
        step(mine, flat_adam, flat)
        step(reference, adam, None)
    assert flat_adam._flat is flat
    states = flat_adam.state_dict()["state"]
    for index, state in adam.state_dict()["state"].items():
        assert float(states[index]["step"]) == float(state["step"]) == 3.0
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(states[index][name], state[name], rtol=1e-4, atol=1e-9)
    # each goes on with the other's state
    saved = copy.deepcopy(flat_adam.state_dict())
    flat_adam.load_state_dict(adam.state_dict())
    adam.load_state_dict(saved)
    for _ in range(3):
        step(mine, flat_adam, flat)
        step(reference, adam, None)
    for p, q in zip(mine.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert {float(state["step"]) for state in flat_adam.state_dict()["state"].values()} == {6.0}


def test_flat_adam_takes_gradients_that_lie_elsewhere_one_by_one():
    mine, reference = make_network(), make_network()
    adam, flat_adam = (
        torch.optim.Adam(reference.parameters(), 1e-2),
        FlatAdam(mine.parameters(), 1e-2, (0.9, 0.999), 1e-8),
    )
    flat = FlatParameters(mine.parameters())
    step(mine, flat_adam, flat)
    flat_adam.zero_grad()
    flat_adam.step(lambda: loss_of(mine).backward())
    step(mine, flat_adam, flat)
    for _ in range(3):
        step(reference, adam, None)
    for p, q in zip(mine.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_bare_step_is_a_step_and_leaves_out_nothing_that_somebody_waits_for():
    def trained(bare: bool, hooked: bool = False) -> tuple[list[torch.Tensor], int]:
        network, calls = make_network(), []
        optimizer, flat = FlatAdam(network.parameters(), 1e-2, (0.9, 0.999), 1e-8), FlatParameters(network.parameters())
        if hooked:
            optimizer.register_step_post_hook(lambda *_: calls.append(1))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for elsewhere in (False, False, True, False):
            flat.attach()
            flat.gradients.zero_()
            optimizer.lay_out(flat)
            loss_of(network).backward()
            if elsewhere:
                for p in network.parameters():
                    p.grad = p.grad.clone()
            optimizer.bare_step() if bare else optimizer.step()
            scheduler.step()  # warns, which is an error here, if no step was taken before
        return [p.detach().clone() for p in network.parameters()], len(calls)

    expected, _ = trained(bare=False)
    for hooked in (False, True):
        found, calls = trained(bare=True, hooked=hooked)
        assert calls == 4 * hooked
        for p, q in zip(found, expected, strict=True):
            assert torch.equal(p, q)


def test_a_profile_shows_the_steps():
    network = make_network()
    optimizer, flat = FlatAdam(network.parameters(), 1e-2, (0.9, 0.999), 1e-8), FlatParameters(network.parameters())
    flat.attach()
    loss_of(network).backward()
    optimizer.lay_out(flat)
    with torch.profiler.profile() as profile:
        optimizer.bare_step()
    assert any(event.key == "Optimizer.step#FlatAdam.step" for event in profile.key_averages())


def test_scaled_gradients_are_unscaled_before_they_are_clipped():
    network, reference = make_network(), make_network()
    optimizer, scaler = FlatAdam(network.parameters(), 1e-2, (0.9, 0.999), 1e-8), torch.amp.GradScaler("cpu", 1024.0)
    flat = FlatParameters(network.parameters())
    flat.attach()
    optimizer.lay_out(flat)
    scaler.scale(loss_of(network)).backward()
    # what Lightning's mixed precision asks before it unscales
    assert not optimizer._step_supports_amp_scaling
    scaler.unscale_(optimizer)
    loss_of(reference).backward()
    torch.testing.assert_close(flat.gradients, flat.join([q.grad for q in reference.parameters()]))
    before = flat.values.clone()
    scaler.step(optimizer)
    assert not torch.equal(flat.values, before)
    # a step with an infinity is left out
    scaler.update()
    flat.gradients[0] = torch.inf
    scaler.unscale_(optimizer)
    before = flat.values.clone()
    scaler.step(optimizer)
    assert torch.equal(flat.values, before)


class Listener(pl.Callback):
    """Wants to know of every backward pass and step."""

    def __init__(self) -> None:
        self.backward_passes = self.steps = 0

    def on_after_backward(self, *args):
        self.backward_passes += 1

    def on_before_optimizer_step(self, *args):
        self.steps += 1


def train(*callbacks, model_type=PPO, **kwargs):
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule("Pendulum-v1", num_envs=4, num_steps=16, rollouts_per_epoch=3)
    update = {"epochs": 2, "minibatch_size": 16, "max_grad_norm": 0.1}
    model = model_type(data.observation_space, data.action_space, update=update, **kwargs)
    trainer = make_trainer(callbacks=[*callbacks])
    trainer.fit(model, data)
    assert trainer.global_step == 3 * 2 * 4
    return model


def weights(model: PPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_with_and_without_lightnings_hooks_training_is_the_same():
    listener = Listener()
    general, plain = train(listener), train()
    assert listener.backward_passes == listener.steps == 3 * 2 * 4
    torch.testing.assert_close(weights(plain), weights(general), rtol=1e-4, atol=1e-6)
    copy.deepcopy(plain)  # nothing of the fit is left in it


def test_a_module_that_overrides_backward_is_asked():
    losses = []

    class Noting(PPO):
        def backward(self, loss):
            losses.append(loss.item())
            super().backward(loss)

    train(model_type=Noting)
    assert len(losses) == 3 * 2 * 4


@eager_and_compiled
def test_parameters_frozen_between_iterations_stay(compiled):
    class Freeze(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            for p in module.policy.network.actor_trunk.parameters():
                p.requires_grad_(batch_idx != 1)
            self.frozen = [p.detach().clone() for p in module.policy.network.actor_trunk.parameters()]
            self.free = module.policy.network.actor_output.weight.detach().clone()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            now = module.policy.network.actor_trunk.parameters()
            same = all(torch.equal(p, q) for p, q in zip(now, self.frozen, strict=True))
            assert same == (batch_idx == 1)
            assert not torch.equal(module.policy.network.actor_output.weight, self.free)

    train(Freeze(), compile=compiled)
