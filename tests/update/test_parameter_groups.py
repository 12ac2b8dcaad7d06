"""Parameter groups: an encoder with a learning rate of its own, or frozen."""

import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from torch import nn

from lightning_ppo import PPO
from lightning_ppo.support.errors import ConfigError
from tests.kit.resuming import assert_same_agent
from tests.kit.training import eager_and_compiled, make_pair, make_trainer

PENDULUM = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (1,))
ENCODERS = "policy.network.*.encoder.*"
SGD = {"class_path": "torch.optim.SGD", "learning_rate": 0.1}


class Encoder(nn.Module):
    """A layer that somebody has trained."""

    def __init__(self, space):
        super().__init__()
        self.num_features = 8
        self.layer = nn.Linear(space.shape[0], 8)

    def forward(self, inputs):
        return self.layer(inputs)


def make(groups, optimizer=None, **kwargs):
    settings = (optimizer or {}) | {"groups": groups}
    return make_pair("Pendulum-v1", policy={"encoder": Encoder}, optimizer=settings, **kwargs)


def moved(groups, optimizer=None, **kwargs) -> tuple[dict[str, float], pl.Trainer]:
    """Return how far each parameter moves in an iteration."""
    model, data = make(groups, optimizer, **kwargs)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer()
    trainer.fit(model, data)
    return {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}, trainer


@eager_and_compiled
def test_a_frozen_encoder_stays_and_all_else_moves(compiled):
    distances, _ = moved([{"parameters": ENCODERS, "factor": 0}], compile=compiled)
    frozen = {name for name in distances if ".encoder." in name}
    assert len(frozen) == 4  # weight and bias, of the actor and of the critic
    assert {name for name, distance in distances.items() if distance == 0.0} == frozen


def test_a_factor_multiplies_the_rate():
    # plain gradient descent moves parameters in proportion to their rate; one step from the same weights
    once = {"update": {"epochs": 1, "minibatch_size": 64, "max_grad_norm": None}}
    whole, _ = moved([], SGD, **once)
    part, trainer = moved([{"parameters": ENCODERS, "factor": 0.25}], SGD, **once)
    for name, distance in whole.items():
        assert part[name] == pytest.approx(distance * (0.25 if ".encoder." in name else 1.0), rel=1e-3), name
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.1, 0.025])


def test_the_rate_of_a_group_follows_that_of_all_others():
    rate = {"kind": "adaptive_kl", "start": 1e-3, "target_kl": 1e-9}
    model, data = make([{"parameters": ENCODERS, "factor": 0.1}], {"learning_rate": rate})
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, data)
    rest, encoder = (group["lr"] for group in trainer.optimizers[0].param_groups)
    assert encoder == pytest.approx(0.1 * rest) and rest == pytest.approx(1e-3 / 1.5**3)


def test_the_first_group_that_matches_counts_and_arguments_are_of_the_group():
    settings = {"class_path": "torch.optim.AdamW", "learning_rate": 1e-3, "init_args": {"weight_decay": 0.1}}
    groups = [
        {"parameters": ["*.bias", "*.log_std"], "init_args": {"weight_decay": 0.0}},
        {"parameters": ENCODERS, "factor": 0.5},
    ]
    model, data = make(groups, settings)
    trainer = make_trainer()
    trainer.fit(model, data)
    rest, biases, encoders = trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in (rest, biases, encoders)] == [0.1, 0.0, 0.1]
    assert [group["lr"] for group in (rest, biases, encoders)] == [1e-3, 1e-3, 5e-4]
    named = dict(model.named_parameters())
    assert {id(p) for p in biases["params"]} == {id(p) for n, p in named.items() if n.endswith((".bias", ".log_std"))}
    assert len(encoders["params"]) == 2  # the weights alone


def resumed(tmp_path, groups):
    model, data = make([{"parameters": ENCODERS, "factor": 0.1}], total_env_steps=256)
    first = make_trainer(max_epochs=1)
    first.fit(model, data)
    first.save_checkpoint(tmp_path / "one.ckpt")
    model, data = make(groups, total_env_steps=256)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    return model, trainer


def test_groups_are_resumed_bit_for_bit(tmp_path):
    whole, data = make([{"parameters": ENCODERS, "factor": 0.1}], total_env_steps=256)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(whole, data)
    assert_same_agent(whole, trainer, *resumed(tmp_path, [{"parameters": ENCODERS, "factor": 0.1}]))


def test_another_factor_counts_on_resuming_and_other_groups_are_refused(tmp_path):
    _, trainer = resumed(tmp_path, [{"parameters": ENCODERS, "factor": 0.5}])
    rest, encoder = (group["lr"] for group in trainer.optimizers[0].param_groups)
    assert encoder == pytest.approx(0.5 * rest)
    for groups in ([], [{"parameters": "*.bias", "factor": 0.1}], [{"parameters": ENCODERS, "factor": 0}]):
        with pytest.raises(ConfigError, match=r"^optimizer\.groups: the checkpoint holds the state of other groups"):
            resumed(tmp_path, groups)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (["*.bias"], "expected mappings of parameters, factor and init_args"),
        ([{"parameters": "*", "lr": 1e-4}], "expected mappings of parameters, factor and init_args"),
        ([{"factor": 0.1}], "parameters: expected a pattern such as '*.encoder.*', or a list, got None"),
        (
            [{"parameters": "*", "factor": -1.0}],
            "factor: expected a number that multiplies",
        ),
        ([{"parameters": "*", "init_args": {"weight_decay": 0}}], "init_args: adam takes none"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups, said):
    with pytest.raises(ConfigError) as error:
        PPO(*PENDULUM, optimizer={"groups": groups})
    assert str(error.value).startswith("optimizer.groups") and said in str(error.value)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([{"parameters": "*.encodr.*"}], "matches no parameter that is left, such as policy."),
        ([{"parameters": "*"}, {"parameters": "*.bias"}], "*.bias matches no parameter that is left"),
        (
            [{"parameters": "*", "init_args": {"weight_dekay": 0}}],
            "SGD has no argument weight_dekay for a group; it has",
        ),
    ],
)
def test_what_groups_cannot_have_is_known_before_anything_is_collected(groups, said):
    model = PPO(*PENDULUM, optimizer=SGD | {"groups": groups})
    with pytest.raises(ConfigError) as error:
        model.configure_optimizers()
    assert str(error.value).startswith("optimizer.groups") and said in str(error.value)


def test_a_trust_region_leaves_what_is_frozen():
    distances, _ = moved([{"parameters": ENCODERS, "factor": 0}], objective="trpo")
    assert {name for name, distance in distances.items() if distance == 0.0} == {
        n for n in distances if ".encoder." in n
    }


def test_named_parameters_are_in_the_groups_once():
    model = PPO(*PENDULUM, policy={"shared_trunk": True}, optimizer={"groups": [{"parameters": "*.bias", "factor": 2}]})
    made = model.configure_optimizers()["optimizer"]
    parameters = [p for group in made.param_groups for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(model.parameters()))
    assert isinstance(made, torch.optim.Adam)
