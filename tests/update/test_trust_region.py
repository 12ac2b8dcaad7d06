"""TRPO: the linear algebra against dense matrices, the promises of a step, and its place in the module."""

import copy
import pickle

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.policy.layers import MLP
from lightning_ppo.settings.algorithm import TrustRegionConfig
from lightning_ppo.support.distributed import mean_over_ranks
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.trust_region import FisherProduct, TrustRegion, conjugate_gradients, flatten, set_gradients
from tests.kit.training import Watched, make_pair, make_trainer, train

ROWS = 64
SPACES = [spaces.Discrete(3), spaces.Box(-1, 1, (2,))]
both_spaces = pytest.mark.parametrize("space", SPACES, ids=["discrete", "box"])


class Problem:
    """A small policy in float64, transitions it sampled, and the closure of their surrogate and KL divergence."""

    def __init__(self, space: spaces.Space) -> None:
        torch.manual_seed(4)
        self.head = make_action_head(space).double()
        self.trunk = MLP(3, [5], "tanh").double()
        self.output = nn.Linear(5, self.head.num_outputs).double()
        self.critic = nn.Linear(3, 1).double()
        self.observations = torch.randn(ROWS, 3, dtype=torch.float64)
        self.advantages = torch.randn(ROWS, dtype=torch.float64)
        with torch.no_grad():
            self.old = self.distribution()
            noise = self.head.noise((ROWS,), torch.Generator().manual_seed(1)).double()
            self.actions = self.head.sample(self.old, noise)
            self.log_probs = self.head.log_prob(self.old, self.actions)

    def distribution(self) -> Tensor:
        return self.head.parameters_of(self.output(self.trunk(self.observations)))

    def actor(self) -> list[Tensor]:
        return [*self.trunk.parameters(), *self.output.parameters(), *self.head.parameters()]

    def parameters(self) -> list[Tensor]:
        return [*self.actor(), *self.critic.parameters()]

    def __call__(self) -> tuple[Tensor, Tensor]:
        new = self.distribution()
        ratios = (self.head.log_prob(new, self.actions) - self.log_probs).exp()
        return -(ratios * self.advantages).mean(), self.head.kl(self.old, new).mean()

    def fisher(self) -> Tensor:
        """The dense Fisher matrix: J^T F_d J, where F_d is the Fisher matrix of a distribution's own parameters."""
        total = torch.zeros(())
        for row in self.distribution():
            rows = [torch.autograd.grad(x, self.actor(), retain_graph=True, materialize_grads=True) for x in row]
            jacobian = torch.stack([flatten(gradients) for gradients in rows])
            total = total + jacobian.T @ self._own_fisher(row.detach()) @ jacobian
        return total / ROWS

    def _own_fisher(self, parameters: Tensor) -> Tensor:
        if self.head.action_shape == ():
            p = parameters.softmax(-1)
            return torch.diag(p) - torch.outer(p, p)  # of logits
        log_std = parameters[2:]
        return torch.diag(torch.cat(((-2.0 * log_std).exp(), torch.full_like(log_std, 2.0))))  # of mean and log std


def test_conjugate_gradients_solve_a_positive_definite_system():
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    matrix, b = root @ root.T + 0.1 * torch.eye(5), torch.randn(5, dtype=torch.float64)
    x = conjugate_gradients(lambda v: matrix @ v, b, iterations=5, tolerance=0.0)
    assert torch.linalg.vector_norm(b - matrix @ x) < 1e-10
    # in as many steps as there are dimensions, and not in fewer
    early = conjugate_gradients(lambda v: matrix @ v, b, iterations=4, tolerance=0.0)
    assert torch.linalg.vector_norm(b - matrix @ early) > 1e-6


def test_conjugate_gradients_stop_at_the_tolerance():
    products = []

    def product(v: Tensor) -> Tensor:
        products.append(v)
        return 2.0 * v

    for scale in (1.0, 1e-8):  # small is not solved
        b = scale * torch.tensor([1.0, -3.0])
        products.clear()
        torch.testing.assert_close(conjugate_gradients(product, b, iterations=10), b / 2, rtol=1e-6, atol=0.0)
        assert len(products) == 1
    products.clear()
    assert torch.equal(conjugate_gradients(product, torch.zeros(2), iterations=10), torch.zeros(2))
    assert not products


@both_spaces
def test_fisher_products_are_those_of_the_explicit_matrix(space):
    problem = Problem(space)
    matrix = problem.fisher().detach()
    _, divergence = problem()
    product = FisherProduct(divergence, problem.actor(), 0.5, lambda x: x)
    columns = [product(v) for v in torch.eye(len(matrix), dtype=torch.float64)]
    torch.testing.assert_close(torch.stack(columns), matrix + 0.5 * torch.eye(len(matrix)), rtol=1e-9, atol=1e-12)


@both_spaces
def test_a_step_improves_within_the_bound(space):
    problem = Problem(space)
    optimizer = TrustRegion(problem.parameters(), max_kl=0.02)
    before = float(problem()[0].detach())
    loss = optimizer.step(problem)
    after, kl = (float(x.detach()) for x in problem())
    assert float(loss) == before
    assert after < before
    assert 0.001 < kl <= 0.02
    assert optimizer.last.kl == kl
    assert optimizer.last.improvement == pytest.approx(before - after, rel=1e-12)
    assert optimizer.last.step_fraction in [0.5**n for n in range(10)]


@both_spaces
def test_a_step_does_not_depend_on_the_scale_of_the_advantages(space):
    steps = []
    for scale in (1.0, 1e-7):
        problem = Problem(space)
        problem.advantages *= scale
        before = flatten(problem.parameters()).detach().clone()
        TrustRegion(problem.parameters()).step(problem)
        steps.append(flatten(problem.parameters()).detach() - before)
    assert steps[0].abs().max() > 1e-3
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_steps_as_the_original_does(copied):
    problem = Problem(SPACES[1])
    settings = {"max_kl": 0.02, "damping": 0.2, "cg_iterations": 3, "line_search_steps": 2, "average": mean_over_ranks}
    optimizer = copied(TrustRegion(problem.parameters(), **settings))
    assert {name: getattr(optimizer, name) for name in settings} == settings
    own = optimizer.param_groups[0]["params"]

    def closure():
        loss = sum((p - 1.0).square().sum() for p in own)
        return loss, 0.5 * sum((p - p.detach()).square().sum() for p in own)

    before = flatten(own).detach().clone()
    optimizer.step(closure)
    assert not torch.equal(flatten(own), before)


@both_spaces
def test_the_critic_stays_where_it_is(space):
    problem = Problem(space)
    critic = list(problem.critic.parameters())
    before = flatten(critic).clone()
    optimizer = TrustRegion(problem.parameters())
    optimizer.step(problem)
    assert torch.equal(flatten(critic), before)
    assert {id(p) for p in optimizer.unmoved} == {id(p) for p in critic}


@both_spaces
def test_a_small_step_is_along_the_natural_gradient(space):
    problem = Problem(space)
    gradient = flatten(torch.autograd.grad(problem()[0], problem.actor()))
    matrix = problem.fisher().detach()
    natural = torch.linalg.solve(matrix + 1e-3 * torch.eye(len(matrix)), gradient)
    before = flatten(problem.actor()).detach().clone()
    optimizer = TrustRegion(problem.parameters(), max_kl=1e-8, damping=1e-3, cg_iterations=100)
    optimizer.step(problem)
    step = flatten(problem.actor()).detach() - before
    assert torch.cosine_similarity(step, -natural, 0) >= 0.999
    # and where the plain gradient would point elsewhere
    assert torch.cosine_similarity(step, -gradient, 0) < 0.99
    # its length is that at which the quadratic model meets the bound
    assert float(0.5 * step @ matrix @ step) == pytest.approx(1e-8, rel=0.2)


@pytest.mark.parametrize("worse", [lambda loss: 10.0 * loss.detach().abs() + loss, lambda loss: loss * torch.nan])
def test_a_rejected_step_leaves_the_parameters_bit_equal(worse):
    problem = Problem(SPACES[1])
    before, calls = flatten(problem.parameters()).detach().clone(), []

    def closure():
        loss, divergence = problem()
        calls.append(1)
        # the first call makes the step, those that follow judge it
        return (loss if len(calls) == 1 else worse(loss) + 1.0), divergence

    optimizer = TrustRegion(problem.parameters(), line_search_steps=4)
    optimizer.step(closure)
    assert torch.equal(flatten(problem.parameters()), before)
    assert optimizer.last.step_fraction == optimizer.last.improvement == 0.0
    assert len(calls) == 5


def test_a_step_beyond_the_bound_is_shortened():
    problem = Problem(SPACES[1])
    measured = []

    def closure():
        loss, divergence = problem()
        if measured:
            divergence = 3.0 * divergence  # what the quadratic model knows nothing of
        measured.append(float(divergence.detach()))
        return loss, divergence

    optimizer = TrustRegion(problem.parameters(), max_kl=0.02)
    optimizer.step(closure)
    assert measured[1] > 0.02
    assert optimizer.last.step_fraction in (0.5, 0.25)
    assert 0.0 < optimizer.last.kl <= 0.02


def test_a_loss_without_gradient_moves_nothing():
    problem = Problem(SPACES[1])
    problem.advantages.zero_()
    before = flatten(problem.parameters()).detach().clone()
    optimizer = TrustRegion(problem.parameters())
    assert float(optimizer.step(problem)) == 0.0
    assert torch.equal(flatten(problem.parameters()), before)
    assert optimizer.last.step_fraction == 0.0


def test_a_parameter_that_the_loss_does_not_depend_on_is_no_obstacle():
    x = torch.ones(2, requires_grad=True)
    y = torch.ones(2, requires_grad=True)

    def closure():
        return x.sum(), ((x - x.detach()).square() + (y - y.detach()).square()).sum()

    optimizer = TrustRegion([x, y])
    optimizer.step(closure)
    assert optimizer.last.step_fraction > 0.0
    assert torch.equal(y.detach(), torch.ones(2)) and float(x.detach().max()) < 1.0


def test_gradients_are_set_where_asked_and_nowhere_else():
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    set_gradients((x.square().sum() * y).sum(), [y], lambda tensor: tensor / 2)
    assert x.grad is None
    torch.testing.assert_close(y.grad, torch.tensor([[2.5]]))
    set_gradients(x.sum(), [], lambda tensor: tensor)  # a critic of which nothing is trained


# ---------------------------------------------------------------- in the module


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_every_iteration_keeps_the_bound_and_improves(env):
    model = train(env, rollouts=8, update={"minibatch_size": 16, "trust_region": {"max_kl": 0.02}})
    accepted = [m for m in model.logged if m["update/step_fraction"] > 0.0]
    assert len(model.logged) == 8 and len(accepted) >= 6
    assert all(0.0 < m["update/kl"] <= 0.02 * (1.0 + 1e-5) for m in accepted)
    assert all(m["update/improvement"] > 0.0 for m in accepted)
    assert all(m["update/kl"] == 0.0 for m in model.logged if m not in accepted)


@pytest.mark.parametrize(
    "policy",
    [
        *({"core": name} for name in ("gru", "lstm", "transformer")),
        *({"distribution": name} for name in ("state_gaussian", "beta", "gsde", "tanh_gaussian")),
    ],
    ids=lambda policy: "-".join(policy.values()),
)
def test_the_bound_holds_with_memory_and_with_every_head_of_a_box(policy):
    check_bound(train(rollouts=3, policy=policy, update={"minibatch_size": 32}))


@pytest.mark.parametrize("env", ["tests.kit.rich_envs:Mixed", "tests.kit.rich_envs:Forbidden"])
def test_the_bound_holds_with_mixed_and_masked_actions(env):
    check_bound(train(env, rollouts=3, update={"minibatch_size": 32}))


def check_bound(model: Watched) -> None:
    assert all(m["update/step_fraction"] > 0.0 for m in model.logged)
    # the trust region and the divergence measured afterwards are computed apart from each other
    assert all(0.0 < m["update/kl"] <= 0.01 * (1.0 + 1e-4) for m in model.logged)


def test_minibatches_move_the_critic_alone():
    moved = {}

    class Steps(Watched):
        def constrained_loss(self, batch):
            moved.setdefault("start", {k: v.clone() for k, v in self.policy.named_parameters()})
            return super().constrained_loss(batch)

        def minibatch_loss(self, minibatch):
            moved.setdefault("stepped", {k: v.clone() for k, v in self.policy.named_parameters()})
            return super().minibatch_loss(minibatch)

    model, data = make_pair("Pendulum-v1", Steps, objective="trpo", update={"minibatch_size": 16})
    trainer = make_trainer()
    trainer.fit(model, data)
    assert trainer.global_step == 40  # the critic's 10 epochs x 4 minibatches
    end = dict(model.policy.named_parameters())
    for name in end:
        by_region = not torch.equal(moved["start"][name], moved["stepped"][name])
        by_minibatches = not torch.equal(moved["stepped"][name], end[name])
        assert (by_region, by_minibatches) == (("critic" not in name), ("critic" in name)), name


def test_the_critics_learning_rate_follows_its_schedule_and_no_kl():
    constant = train(optimizer={"learning_rate": {"kind": "adaptive_kl", "start": 1e-4, "target_kl": 1e-6}})
    assert {m["update/learning_rate"] for m in constant.logged} == {1e-4}
    linear = train(optimizer={"learning_rate": {"kind": "linear", "start": 1e-3}}, total_env_steps=256)
    assert [m["update/learning_rate"] for m in linear.logged] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_the_entropy_bonus_is_part_of_the_objective():
    plain, bold = (
        train("CartPole-v1", rollouts=6, update={"minibatch_size": 16, "entropy_coefficient": c}) for c in (0.0, 10.0)
    )
    assert bold.logged[-1]["loss/entropy"] > plain.logged[-1]["loss/entropy"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": {"shared_trunk": True}}, "policy.shared_trunk.* first-order objective"),
        (
            {"policy": {"network": "tests.update.test_trust_region.OneTrunk"}},
            "policy.network: .* first-order objective",
        ),
        ({"policy": {"network": "tests.update.test_trust_region.Normalised"}}, r"policy\.network: batch .*LayerNorm"),
        ({"compile": True}, "compile: .* set it to false"),
        ({"update": {"target_kl": 0.1}}, "update.target_kl: .* update.trust_region.max_kl"),
    ],
)
def test_what_a_trust_region_rules_out_is_refused_with_the_reason(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_pair(objective="trpo", **settings)


class OneTrunk(nn.Module):
    """Actor and critic share a layer."""

    def __init__(self, observation_space, num_outputs):
        super().__init__()
        self.layer = nn.Linear(observation_space.shape[0], 8)
        self.outputs, self.value = nn.Linear(8, num_outputs), nn.Linear(8, 1)

    def forward(self, inputs):
        features = self.layer(inputs).tanh()
        return self.outputs(features), self.value(features).squeeze(-1)


class TwoTrunks(OneTrunk):
    """Actor and critic share nothing."""

    def __init__(self, observation_space, num_outputs):
        super().__init__(observation_space, num_outputs)
        self.value = nn.Linear(observation_space.shape[0], 1)

    def forward(self, inputs):
        return self.outputs(self.layer(inputs).tanh()), self.value(inputs).squeeze(-1)


class Normalised(TwoTrunks):
    """Actor and critic share nothing, and the actor's layer has batch statistics."""

    def __init__(self, observation_space, num_outputs):
        super().__init__(observation_space, num_outputs)
        self.layer = nn.Sequential(self.layer, nn.BatchNorm1d(8))


def test_a_network_that_shares_nothing_and_a_term_of_weight_0_are_taken():
    term = {"class_path": "lightning_ppo.update.loss_terms.DualClip", "weight": 0}
    model = train(rollouts=2, policy={"network": "tests.update.test_trust_region.TwoTrunks"}, loss_terms=[term])
    assert len(model.logged) == 2


def test_the_critic_is_fitted_by_adam():
    class Reference(Watched):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-4, eps=1e-5)

    weights = []
    for kind in (Watched, Reference):
        settings = {"objective": "trpo", "update": {"minibatch_size": 16}}
        model, data = make_pair("Pendulum-v1", kind, rollouts_per_epoch=3, **settings)
        # in float32 the rounding of 120 steps is another on each processor
        trainer = make_trainer(precision="64-true")
        trainer.fit(model, data)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        (optimizer,) = trainer.optimizers
        steps = {float(state["step"]) for state in optimizer.state_dict()["state"].values() if state["step"] > 0}
        assert steps == {120.0}  # 3 rollouts x 10 epochs x 4 minibatches
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_half_precision_is_refused():
    model, data = make_pair(objective="trpo")
    with pytest.raises(ConfigError, match=r"trainer\.precision: .* 32-true or 64-true, got bf16-mixed"):
        make_trainer(precision="bf16-mixed").fit(model, data)


def test_double_precision_keeps_the_bound_exactly():
    model = train(rollouts=3, precision="64-true")
    assert next(model.policy.parameters()).dtype == torch.float64
    # the trust region and the divergence measured afterwards are computed apart from each other
    assert all(0.0 < m["update/kl"] <= 0.01 * (1.0 + 1e-9) for m in model.logged)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"max_kl": 0.0}, "max_kl"), ({"damping": -1.0}, "damping"), ({"cg_iterations": 0}, "cg_iterations")],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(ConfigError, match=f"update.trust_region.{message}"):
        TrustRegionConfig(**setting)
