"""Added losses: their values, their place in the update, and that weight 0 is the same as none."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from lightning_ppo import PPO
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.rollout.shapes import Minibatch
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.loss_terms import ActionSmoothness, DualClip, LossTerm, MirrorSymmetry, make_loss_terms
from lightning_ppo.update.objectives import clipped_surrogate_loss
from tests.kit.training import FIRST_ORDER, Watched, eager_and_compiled, make_pair, make_trainer

PATH = "lightning_ppo.update.loss_terms."
CARTPOLE_MIRROR = {
    "observation_indices": [0, 1, 2, 3],
    "observation_signs": [-1, -1, -1, -1],
    "action_indices": [1, 0],
}
ENTRIES = {
    "dual_clip": PATH + "DualClip",
    "action_smoothness": {"class_path": PATH + "ActionSmoothness", "init_args": {"scale": 0.1}},
    "mirror_symmetry": {"class_path": PATH + "MirrorSymmetry", "init_args": CARTPOLE_MIRROR},
}
each_term = pytest.mark.parametrize("name", ENTRIES)


def entry(name: str, weight) -> dict:
    given = ENTRIES[name]
    return {**({"class_path": given} if isinstance(given, str) else given), "weight": weight}


def make_policy(
    space: spaces.Space, observations: int = 4, normalize: bool = False, hidden_sizes: tuple[int, ...] = (8,)
) -> ActorCritic:
    policy = ActorCritic(
        spaces.Box(-9, 9, (observations,)),
        space,
        PolicyConfig(hidden_sizes=list(hidden_sizes), log_std_init=0.0),
        NormalizeConfig(observations=normalize),
    )
    nn.init.orthogonal_(policy.network.actor_output.weight, 1.0)
    return policy


def make_minibatch(policy: ActorCritic, rows: int = 32) -> Minibatch:
    """Transitions of a policy that was a little different from what it now is."""
    observations = torch.randn(rows, *policy.inputs.leaves[""].shape)
    with torch.no_grad():
        distribution = policy.distribution(observations)
        old = distribution + 0.3 * torch.randn_like(distribution)
        actions = policy.head.sample(old, policy.head.noise((rows,), torch.Generator().manual_seed(0)))
        log_probs = policy.head.log_prob(old, actions)
    zeros = torch.zeros(rows)
    return Minibatch(
        observations, actions, old, log_probs, zeros, torch.randn(rows), zeros, torch.full((rows,), 1 / rows)
    )


def evaluate(term: LossTerm, policy: ActorCritic, minibatch: Minibatch) -> torch.Tensor:
    values = term(policy, minibatch, policy.evaluate(minibatch))
    assert values.shape == (len(minibatch.weights),)
    return values


def fit(entries: list, env: str = "CartPole-v1", rollouts: int = 2, **kwargs) -> Watched:
    model, data = make_pair(env, Watched, rollouts_per_epoch=rollouts, loss_terms=entries, **kwargs)
    make_trainer().fit(model, data)
    return model


def weights_of(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


# ---------------------------------------------------------------- the terms


def test_dual_clip_is_the_dual_clipped_surrogate():
    # ratios 1.1, 5, 5, 2 with A -1, -2, 2, -1 and c 3: -min(r A, clip(r) A) = 1.1, 10, -2.4, 2;
    # with the bound c |A| below 0: 1.1, 6, -2.4, 2
    policy = make_policy(spaces.Discrete(2))
    minibatch = make_minibatch(policy, 4)._replace(advantages=torch.tensor([-1.0, -2.0, 2.0, -1.0]))
    now = policy.evaluate(minibatch)
    log_ratios = torch.tensor([1.1, 5.0, 5.0, 2.0]).log().requires_grad_()
    now = now._replace(log_probs=minibatch.log_probs + log_ratios)
    term = DualClip(policy, bound=3.0)(policy, minibatch, now)
    torch.testing.assert_close(term, torch.tensor([0.0, -4.0, 0.0, 0.0]))
    loss = clipped_surrogate_loss(log_ratios, minibatch.advantages, 0.2) + term
    torch.testing.assert_close(loss, torch.tensor([1.1, 6.0, -2.4, 2.0]))
    # beyond the bound nothing pushes any more; elsewhere the gradient is that of clip
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratios)
    torch.testing.assert_close(gradient, torch.tensor([1.1, 0.0, 0.0, 2.0]))
    # a ratio that no float holds does not matter where the advantage is positive
    now = now._replace(log_probs=minibatch.log_probs + torch.tensor([0.0, 0.0, 100.0, 0.0]))
    assert DualClip(policy)(policy, minibatch, now)[2] == 0.0


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=["discrete", "box"])
def test_smoothness_measures_how_far_noise_moves_the_policy(space):
    policy = make_policy(space)
    minibatch = make_minibatch(policy)
    torch.manual_seed(5)
    noisy = minibatch.observations + 0.1 * torch.randn_like(minibatch.observations)
    torch.manual_seed(5)
    values = evaluate(ActionSmoothness(policy, 0.1), policy, minibatch)
    expected = policy.head.kl(policy.distribution(minibatch.observations), policy.distribution(noisy))
    torch.testing.assert_close(values, expected)
    assert values.min() > 0.0
    nn.init.zeros_(policy.network.actor_output.weight)  # a constant policy is perfectly smooth
    assert evaluate(ActionSmoothness(policy, 0.1), policy, minibatch).abs().max() == 0.0


def test_smoothness_counts_noise_in_normalised_units():
    policy = make_policy(spaces.Box(-1, 1, (2,)), normalize=True)
    minibatch = make_minibatch(policy)
    values = []
    for unit in (1.0, 100.0):
        other = make_policy(spaces.Box(-1, 1, (2,)), normalize=True)
        other.load_state_dict(policy.state_dict())
        observations = unit * minibatch.observations
        other.inputs.update(observations.unsqueeze(1), torch.ones(32, 1, dtype=torch.bool), lambda x: x)
        torch.manual_seed(5)
        values.append(evaluate(ActionSmoothness(other), other, minibatch._replace(observations=observations)))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-6)


def test_a_mirrored_box_policy_by_hand():
    # one action mirrored to minus itself, std 1: KL = (m(s) + m(mirror s))^2 / 2; with m(s) = w . s and a mirror that
    # swaps both observations, m + m' = (w0 + w1)(s0 + s1)
    policy = make_policy(spaces.Box(-1, 1, (1,)), 2, hidden_sizes=())
    with torch.no_grad():
        policy.network.actor_output.weight.copy_(torch.tensor([[0.5, -0.2]]))
    minibatch = make_minibatch(policy, 2)._replace(observations=torch.tensor([[1.0, 2.0], [3.0, -3.0]]))
    term = MirrorSymmetry(policy, observation_indices=[1, 0], action_indices=[0], action_signs=[-1])
    # (.3 x 3)^2 / 2 = .405
    torch.testing.assert_close(evaluate(term, policy, minibatch), torch.tensor([0.405, 0.0]))
    with torch.no_grad():
        policy.network.actor_output.weight.copy_(torch.tensor([[0.5, -0.5]]))  # a symmetric policy
    assert evaluate(term, policy, minibatch).abs().max() < 1e-12


def test_a_mirrored_discrete_policy_by_hand():
    # logits +-w s0 with the mirror s0 -> -s0 and actions swapped are symmetric; a bias b is not:
    # b = (.5, -.5) at s0 = 0 gives p = (.731059, .268941) against the swapped: KL = .462117 x 1 = .462117
    policy = make_policy(spaces.Discrete(2), 1, hidden_sizes=())
    with torch.no_grad():
        policy.network.actor_output.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    minibatch = make_minibatch(policy, 1)
    term = MirrorSymmetry(policy, observation_indices=[0], observation_signs=[-1], action_indices=[1, 0])
    assert evaluate(term, policy, minibatch).abs().max() < 1e-6
    with torch.no_grad():
        policy.network.actor_output.bias.copy_(torch.tensor([0.5, -0.5]))
    values = evaluate(term, policy, minibatch._replace(observations=torch.zeros(1, 1)))
    torch.testing.assert_close(values, torch.tensor([0.462117]), rtol=0, atol=1e-6)


def test_masks_are_mirrored_with_the_actions():
    # of three actions 0 and 1 change places; where only 0 and 2 are legal, 1 and 2 are in the mirror
    policy = make_policy(spaces.Discrete(3), 1, hidden_sizes=())
    with torch.no_grad():
        policy.network.actor_output.weight.zero_()
        policy.network.actor_output.bias.copy_(torch.tensor([0.5, 0.5, 0.0]))
    masks = torch.tensor([[True, False, True], [True, True, True]])
    minibatch = make_minibatch(policy, 2)._replace(action_masks=masks)
    term = MirrorSymmetry(policy, observation_indices=[0], observation_signs=[-1], action_indices=[1, 0, 2])
    # the mirror image of a policy that takes 0 and 1 alike is itself, under the mask too
    assert evaluate(term, policy, minibatch).abs().max() < 1e-6
    with torch.no_grad():
        policy.network.actor_output.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    # legal 0 and 2: p = (.731059, .268941), and in the mirror, where 1 and 2 are legal, (.5, .5):
    # .731059 ln 1.462117 + .268941 ln .537883 = .110944; with all legal: (1 - 0) (.576117 - .211942) = .364175
    values = evaluate(term, policy, minibatch)
    torch.testing.assert_close(values, torch.tensor([0.110944, 0.364175]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation_indices": [0, 1]}, "observation_indices and observation_signs need 4 entries"),
        ({"observation_indices": [1, 2, 0, 3]}, "mirroring twice must change nothing"),
        (
            {"observation_indices": [1, 0, 2, 3], "observation_signs": [1, -1, 1, 1]},
            "observation_signs: entries 0 and 1 change places",
        ),
        ({"observation_signs": [2, 1, 1, 1]}, "every sign is 1 or -1"),
        ({"action_indices": [0, 1, 2]}, "action_indices and action_signs need 2 entries"),
        ({"action_signs": [-1, -1]}, "discrete actions have no sign"),
    ],
)
def test_a_mirror_that_is_none_is_refused(change, message):
    given = {"class_path": PATH + "MirrorSymmetry", "init_args": CARTPOLE_MIRROR | change}
    with pytest.raises(ConfigError, match=message):
        make_pair(loss_terms=[given])


# ---------------------------------------------------------------- in the update


def check_absence(entries: list, compiled: bool) -> None:
    with_terms = fit(entries, compile=compiled)
    random_state = torch.get_rng_state()
    without = fit([], compile=compiled)
    assert torch.equal(weights_of(with_terms), weights_of(without))
    assert torch.equal(random_state, torch.get_rng_state())
    assert with_terms.logged[0].keys() == without.logged[0].keys()


@each_term
@pytest.mark.parametrize("weight", [0, {"kind": "linear", "start": 0.0, "end": 0.0}], ids=["number", "schedule"])
def test_weight_zero_is_bit_equal_to_absence(name, weight):
    check_absence([entry(name, weight)], compiled=False)


@pytest.mark.compiled
def test_weight_zero_is_bit_equal_to_absence_when_compiled():
    check_absence([entry(name, 0.0) for name in ENTRIES], compiled=True)


FAST = {"optimizer": {"learning_rate": 1e-2}, "total_env_steps": 128}


def check_effect(name: str, compiled: bool) -> None:
    given = entry(name, {"kind": "linear", "start": 4.0, "end": 2.0})
    if name == "dual_clip":  # ratios stay near 1, so the bound must be right there
        given["init_args"] = {"bound": 1.0001}
    model = fit([given], compile=compiled, **FAST)
    assert not torch.equal(weights_of(model), weights_of(fit([], compile=compiled, **FAST)))
    assert all(abs(m[f"loss/{name}"]) > 0.0 for m in model.logged)
    assert model.logged[0][f"update/{name}_weight"] == 4.0
    assert 2.0 < model.logged[1][f"update/{name}_weight"] < 4.0


@each_term
def test_terms_take_part_in_the_update_and_are_logged(name):
    check_effect(name, compiled=False)


@pytest.mark.parametrize("objective", FIRST_ORDER)
def test_terms_take_part_with_every_first_order_objective(objective):
    bounded = entry("dual_clip", 1.0) | {"init_args": {"bound": 1.0001}}
    terms = [bounded, entry("action_smoothness", 1.0), entry("mirror_symmetry", 1.0)]
    update = {"minibatch_size": 16}
    model, without = (fit(t, objective=objective, update=update, **FAST) for t in (terms, []))
    assert not torch.equal(weights_of(model), weights_of(without))
    # without a ratio there is one epoch, whose first minibatch sees ratios of 1
    assert all(abs(m[f"loss/{name}"]) > 0.0 for m in model.logged for name in ENTRIES)


@pytest.mark.compiled
def test_a_random_term_takes_part_when_compiled():
    check_effect("action_smoothness", compiled=True)


@pytest.mark.compiled
def test_compiled_terms_are_the_eager_ones():
    entries = [entry("dual_clip", 1.0) | {"init_args": {"bound": 1.0001}}, entry("mirror_symmetry", 0.5)]
    eager, compiled = (fit(entries, compile=c) for c in (False, True))
    torch.testing.assert_close(weights_of(eager), weights_of(compiled), rtol=0, atol=1e-5)
    for one, other in zip(eager.logged, compiled.logged, strict=True):
        for name in ("loss/mirror_symmetry", "loss/dual_clip"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-8) and one[name] != 0.0


def test_the_mirror_term_makes_the_policy_symmetric():
    def asymmetry(weight: float) -> float:
        model = fit([entry("mirror_symmetry", weight)], rollouts=30, **FAST | {"total_env_steps": 1920})
        torch.manual_seed(0)
        minibatch = make_minibatch(model.policy, 256)
        with torch.no_grad():
            return float(evaluate(MirrorSymmetry(model.policy, **CARTPOLE_MIRROR), model.policy, minibatch).mean())

    assert asymmetry(10.0) < 0.01 * asymmetry(0.0)


class Offset(LossTerm):
    """A term from outside with a parameter of its own, whose optimum is 1."""

    def __init__(self, policy, start: float = 0.0):
        super().__init__(policy)
        self.offset = nn.Parameter(torch.tensor(start))

    def forward(self, policy, minibatch, now):
        return (self.offset - 1.0).square() + 0.0 * now.values


@eager_and_compiled
def test_a_term_of_the_users_own_with_parameters(compiled, tmp_path):
    given = {"class_path": "tests.update.test_loss_terms.Offset", "init_args": {"start": 0.5}}
    model, data = make_pair(loss_terms=[given], compile=compiled, optimizer={"learning_rate": 1e-2})
    trainer = make_trainer()
    trainer.fit(model, data)
    assert float(model.loss_terms["offset"].offset.detach()) == pytest.approx(0.58, abs=0.01)  # 8 steps of Adam
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
    assert torch.equal(loaded.loss_terms["offset"].offset, model.loss_terms["offset"].offset)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["lightning_ppo.update.loss_terms.Nothing"], "loss_terms: cannot import"),
        ([{"class_path": "lightning_ppo.update.loss_terms.Nothing", "weight": 0}], "loss_terms: cannot import"),
        (
            ["lightning_ppo.policy.actor_critic.ActorCritic"],
            "loss_terms: lightning_ppo.policy.actor_critic.ActorCritic is no",
        ),
        ([entry("dual_clip", -1)], "values must be finite and not negative"),
        ([{**entry("dual_clip", 1), "wieght": 2}], "got 'wieght'"),
        ([entry("dual_clip", 1), entry("dual_clip", 2)], "the name dual_clip is taken"),
        ([{"class_path": PATH + "DualClip", "init_args": {"bound": 0.5}}], "bound must be greater than 1"),
        ([{"class_path": PATH + "ActionSmoothness", "init_args": {"scale": 0}}], "scale must be positive"),
    ],
)
def test_entries_that_are_none_are_errors(entries, message):
    with pytest.raises(ConfigError, match=message):
        make_pair(loss_terms=entries)


class Entropy(LossTerm):
    """Its name is that of a loss which is there already."""

    def forward(self, policy, minibatch, now):
        return now.entropies


class Values(Entropy):
    """Its name is that of a method of the container of terms."""


@pytest.mark.parametrize("name", ["Entropy", "Values"])
def test_a_name_that_is_taken_is_an_error(name):
    with pytest.raises(ConfigError, match=f"the name {name.lower()} is taken"):
        make_pair(loss_terms=[f"tests.update.test_loss_terms.{name}"])


def test_noise_needs_observations_to_be_added_to():
    images = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    with pytest.raises(ConfigError, match="Box observations that are no images, and there is none"):
        PPO(images, spaces.Discrete(2), loss_terms=[entry("action_smoothness", 1.0)])


def test_a_trust_region_takes_no_terms():
    with pytest.raises(ConfigError, match="loss_terms: trpo takes none"):
        make_pair(objective="trpo", loss_terms=[entry("dual_clip", 1)])


def test_terms_draw_from_the_random_state_that_a_checkpoint_holds():
    policy = make_policy(spaces.Discrete(2))
    (term,) = make_loss_terms([entry("action_smoothness", 1)], policy)[0].values()
    minibatch = make_minibatch(policy)
    state = torch.get_rng_state()
    first = evaluate(term, policy, minibatch)
    torch.set_rng_state(state)
    assert torch.equal(first, evaluate(term, policy, minibatch))
    assert not torch.equal(first, evaluate(term, policy, minibatch))


class Constant(LossTerm):
    """Is 1 in every transition."""

    def forward(self, policy, minibatch, now):
        return torch.ones_like(minibatch.weights)


def test_a_term_counts_by_its_weight():
    losses = []

    class Noting(PPO):
        def minibatch_loss(self, minibatch):
            loss, reported = super().minibatch_loss(minibatch)
            losses.append((float(loss.detach()), reported.means.tolist()))
            return loss, reported

    model, data = make_pair(model=Noting, loss_terms=[{"class_path": f"{__name__}.Constant", "weight": 0.25}])
    make_trainer().fit(model, data)
    assert len(losses) == 8
    for loss, (policy, value, _, term) in losses:
        assert term == pytest.approx(1.0) and loss == pytest.approx(policy + 0.5 * value + 0.25, abs=1e-5)
