"""Every kind of observation with every kind of action: against slow references, through rollouts, and compiled."""

import functools
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate
from gymnasium.wrappers import TransformObservation
from torch import Tensor
from torch.distributions import AffineTransform, Beta, Categorical, Normal, TransformedDistribution, kl_divergence
from torch.nn.functional import softplus

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.acting import TorchActor
from lightning_ppo.collection.numpy_acting import NumpyActor
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.distributions import ActionHead, CompositeHead, make_action_head
from lightning_ppo.policy.scoring import divergences
from lightning_ppo.rollout.shapes import Minibatch, select
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError, UnsupportedSpaceError
from lightning_ppo.support.spaces import space_from_spec, space_to_spec
from lightning_ppo.support.tree import tree_leaves, tree_map
from tests.kit.collecting import transitions
from tests.kit.spaces import (
    ACTIONS,
    ARM,
    CORES,
    GRID,
    IMAGE,
    OBSERVATIONS,
    VECTOR,
    Anything,
    agent_of,
    choices_of,
    chosen,
    collected,
    flattened,
    observed,
    pairs,
    parts_of,
    random_masks,
)
from tests.kit.training import make_trainer

every_action = pytest.mark.parametrize("action", ACTIONS)


# ---------------------------------------------------------------- slow references, one number after the other


def marginals(space: Space, name: str, head: ActionHead, outputs: Tensor, masks: Tensor | None) -> list[Any]:
    """The independent distributions of the numbers of an action in float64, of outputs (B, ...) and masks (B, M)."""
    own, features = outputs.double().split([head.num_outputs, head.num_features], 1)
    heads = list(head.parts) if isinstance(head, CompositeHead) else [head]
    found: list[Any] = []

    def take(count: int) -> Tensor:
        nonlocal own
        taken, own = own[:, :count], own[:, count:]
        return taken

    for part, part_head in zip(parts_of(space), heads, strict=True):
        for n in choices_of(part):
            weights = take(n).exp()
            if masks is not None:
                legal, masks = masks[:, :n], masks[:, n:]
                weights = weights * legal
            found.append(Categorical(probs=weights / weights.sum(1, keepdim=True)))
        if not isinstance(part, spaces.Box):
            continue
        size = math.prod(part.shape)
        if name == "beta":
            alpha, beta = 1.0 + softplus(take(size)), 1.0 + softplus(take(size))
            pairs = [Beta(alpha[:, i], beta[:, i]) for i in range(size)]
            found += [TransformedDistribution(pair, AffineTransform(-1.0, 2.0)) for pair in pairs]
            continue
        mean = take(size)
        if name == "state_gaussian":
            stds = (take(size) + part_head.log_std.double()).clamp(-20.0, 2.0).exp()
        elif name == "gsde":
            count = part_head.num_features
            mine, features = features[:, :count], features[:, count:]
            spread = part_head.log_std.detach().double().exp()
            total = [sum((mine[:, f] * spread[f, i]) ** 2 for f in range(count)) for i in range(size)]
            stds = (torch.stack(total, 1) + 1e-6).sqrt()
        else:
            stds = part_head.log_std.detach().double().exp().expand_as(mean)
        found += [Normal(mean[:, i], stds[:, i]) for i in range(size)]
    assert not own.numel()
    return found


def log_slope(u: Tensor) -> Tensor:
    """Log of the derivative of tanh, in float64."""
    return -2.0 * torch.logaddexp(u.double(), -u.double()) + 2.0 * math.log(2.0)


def squashed(space: Space, name: str) -> list[bool]:
    """For each number of an action, whether tanh is applied to it."""
    return [
        name == "tanh_gaussian" and isinstance(part, spaces.Box)
        for part in parts_of(space)
        for _ in range(len(choices_of(part)) or math.prod(part.shape or ()))
    ]


def reference_log_prob(space: Space, name: str, distributions: list[Any], actions: Tensor) -> Tensor:
    columns = actions.reshape(len(actions), -1).double()
    total = torch.zeros(len(actions), dtype=torch.float64)
    for column, (distribution, tanh) in enumerate(zip(distributions, squashed(space, name), strict=True)):
        x = columns[:, column]
        total += distribution.log_prob(x.long() if isinstance(distribution, Categorical) else x)
        total -= log_slope(x) if tanh else 0.0
    return total


def reference_entropy(space: Space, name: str, distributions: list[Any]) -> Tensor:
    grid = torch.linspace(-8.0, 8.0, 2_001, dtype=torch.float64)
    weights = torch.softmax(-0.5 * grid.square(), 0)
    total = torch.zeros((), dtype=torch.float64)
    for distribution, tanh in zip(distributions, squashed(space, name), strict=True):
        if isinstance(distribution, TransformedDistribution):
            total = total + distribution.base_dist.entropy() + math.log(2.0)
        else:
            total = total + distribution.entropy()
        if tanh:
            points = distribution.mean.unsqueeze(1) + distribution.stddev.unsqueeze(1) * grid
            total = total + (log_slope(points) * weights).sum(1)
    return total


def reference_kl(first: list[Any], second: list[Any]) -> Tensor:
    def base(distribution: Any) -> Any:
        return distribution.base_dist if isinstance(distribution, TransformedDistribution) else distribution

    return sum((kl_divergence(base(p), base(q)) for p, q in zip(first, second, strict=True)), torch.zeros(()))


# ---------------------------------------------------------------- agents and rollouts


STEPS, COPIES = 4, 3


@functools.cache
def shown(observation: str) -> Any:
    """Random observations (COPIES x STEPS, ...), the steps of a copy one after the other."""
    return observed(OBSERVATIONS[observation], COPIES * STEPS)


def at(step: int, *trees: Any) -> list[Any]:
    """Rows of one step of each of (COPIES x STEPS, ...), or None."""
    return [None if tree is None else tree_map(lambda x: x[step::STEPS], tree) for tree in trees]


def played(agent: ActorCritic, observations: Any, masks: Tensor | None) -> Minibatch:
    """What an agent does in rows (COPIES x STEPS, ...), one step at a time, as sequences of STEPS rows."""
    generator = torch.Generator().manual_seed(0)
    noise = agent.head.noise((STEPS, COPIES), generator).to(agent.dtype)
    states = first = starts = None
    if agent.state_size:
        states = first = torch.randn(COPIES, agent.state_size, generator=generator).to(agent.dtype)
        starts = torch.rand(COPIES * STEPS, generator=generator) < 0.3
    done: list[Any] = []
    with torch.no_grad():
        for t in range(STEPS):
            seen, legal, begun = at(t, observations, masks, starts)
            one = transitions(seen, noise[t], action_masks=legal, starts=begun, states=states)
            actions, states = agent.act(seen, noise[t], legal, states, begun)
            said = agent.evaluate(one._replace(actions=actions))
            done.append((actions, said.distribution, said.log_probs))
    actions, distribution, log_probs = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*done, strict=True))
    fields = {"distribution": distribution, "log_probs": log_probs, "starts": starts, "states": first}
    return transitions(observations, actions, action_masks=masks, **fields)


def every(cases: Iterator[tuple[str, str, str | None, bool]]) -> pytest.MarkDecorator:
    found = list(cases)
    names = [f"{o}-{a}-{c or 'mlp'}{'-masked' * m}" for o, a, c, m in found]
    return pytest.mark.parametrize(("observation", "action", "core", "masked"), found, ids=names)


@pytest.mark.exhaustive(strength=2)
@every(pairs())
def test_every_pair(observation: str, action: str, core: str | None, masked: bool) -> None:
    observation_space, (action_space, name) = OBSERVATIONS[observation], ACTIONS[action]
    settings = {"core": core, "core_size": 4}
    agent = agent_of(observation_space, action_space, name, seen=shown(observation), **settings)
    head, rows = agent.head, COPIES * STEPS
    masks = random_masks(choices_of(action_space), rows, np.random.default_rng(0)) if masked else None
    legal = None if masks is None else torch.from_numpy(masks)
    batch = played(agent, shown(observation), legal)
    assert batch.actions.shape == (rows, *head.action_shape)

    # whole sequences say what single steps said: the first ratio is 1
    now = agent.evaluate(batch)
    assert {x.shape for x in (now.log_probs, now.entropies, now.values)} == {(rows,)}
    assert torch.isfinite(batch.log_probs).all()
    if name in ("state_gaussian", "gsde"):
        # a state may make the standard deviation 0.003, where float32 shows how it rounds a mean of 2.7
        exact = agent_of(observation_space, action_space, name, seen=shown(observation), **settings).double()
        acted = played(exact, shown(observation), legal)
        assert ((exact.evaluate(acted).log_probs - acted.log_probs).exp() - 1.0).abs().max() <= 1e-9
    else:
        assert ((now.log_probs - batch.log_probs).exp() - 1.0).abs().max() <= 2e-5
    assert divergences(agent, batch).abs().max() <= 1e-5

    # and what a slow reference says
    outputs = agent.network.actor(agent.inputs(batch.observations), batch.states, batch.starts).detach()
    others = outputs.roll(1, 0)
    references, other_references = (
        marginals(action_space, name, head, x, batch.action_masks) for x in (outputs, others)
    )
    close: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-4, "check_dtype": False}
    torch.testing.assert_close(
        batch.log_probs, reference_log_prob(action_space, name, references, batch.actions), **close
    )
    torch.testing.assert_close(now.entropies, reference_entropy(action_space, name, references), **close)
    kl = head.kl(now.distribution, head.parameters_of(others, batch.action_masks))
    torch.testing.assert_close(kl, reference_kl(references, other_references), **close)

    # every parameter gets a finite gradient
    agent.zero_grad(set_to_none=True)
    (now.log_probs.sum() + now.entropies.sum() + now.values.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in agent.parameters())

    # what the environment gets is legal
    given = tree_map(lambda x: x.numpy(), head.to_env(batch.actions))
    for row, one in enumerate(iterate(batch_space(action_space, rows), given)):
        assert action_space.contains(one)
        assert masks is None or masks[row, chosen(action_space, one)].all()

    # another agent made from the files acts and judges as this one does
    file = io.BytesIO()
    torch.save([space_to_spec(observation_space), space_to_spec(action_space), agent.state_dict()], file)
    *specs, weights = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = ActorCritic(*map(space_from_spec, specs), PolicyConfig([8], distribution=name, **settings))
    again.load_state_dict(weights)
    assert torch.equal(again.evaluate(batch).log_probs, now.log_probs)
    seen, legal, starts = at(0, batch.observations, batch.action_masks, batch.starts)
    taken, repeated = (a.step(seen, batch.states, starts, action_masks=legal)[0] for a in (agent, again))
    assert all(map(torch.equal, tree_leaves(taken), tree_leaves(repeated)))


@every_action
def test_gradients_of_every_head_are_those_of_finite_differences(action: str) -> None:
    space, name = ACTIONS[action]
    torch.manual_seed(0)
    head = make_action_head(space, name, num_features=3).double()
    rows, (own, features) = 5, (head.num_outputs, head.num_features)
    masks = torch.from_numpy(random_masks(choices_of(space), rows, np.random.default_rng(0)))
    legal = masks if masks.shape[1] else None
    given = torch.randn(rows, features, dtype=torch.float64)  # what gSDE explores with is detached
    outputs, others = torch.randn(2, rows, own, dtype=torch.float64)
    with torch.no_grad():
        old = head.parameters_of(torch.cat((others, given), 1), legal)
        actions = head.sample(old, head.noise((rows,), torch.Generator().manual_seed(1)).double())

    def of(outputs: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        now = head.parameters_of(torch.cat((outputs, given), 1), legal)
        return head.log_prob(now, actions), head.entropy(now), head.kl(old, now)

    assert torch.autograd.gradcheck(of, (outputs.requires_grad_(), *head.parameters()))


def through_environments() -> Iterator[tuple[str, str, str | None, bool]]:
    """Every kind of observation, every action and every core at least once, with masks where there are choices."""
    for number, (action, (space, _)) in enumerate(ACTIONS.items()):
        yield [*OBSERVATIONS][number % len(OBSERVATIONS)], action, CORES[number % len(CORES)], bool(choices_of(space))


@pytest.mark.exhaustive(strength=2)
@every(through_environments())
def test_rollouts(observation: str, action: str, core: str | None, masked: bool) -> None:
    observation_space, (action_space, name) = OBSERVATIONS[observation], ACTIONS[action]
    agent = agent_of(observation_space, action_space, name, core=core, core_size=4)
    rollout = collected(agent, observation_space, action_space, masked)  # the environment refuses what is illegal
    assert rollout.actions.shape == (5, 3, *agent.head.action_shape)
    assert (rollout.action_masks is None) == (not masked)
    batch = flattened(rollout)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))[:7]
    minibatch = select(batch, order)
    now = agent.evaluate(minibatch)
    assert ((now.log_probs - minibatch.log_probs).exp() - 1.0).abs().max() <= 2e-5
    assert divergences(agent, minibatch).abs().max() <= 1e-5


# ---------------------------------------------------------------- samples


@pytest.mark.exhaustive
@pytest.mark.parametrize("masked", [False, True], ids=["all legal", "masked"])
@every_action
def test_samples_are_distributed_as_claimed(action: str, masked: bool) -> None:
    space, name = ACTIONS[action]
    count, sizes = 20_000, choices_of(space)
    if masked and not sizes:
        return
    torch.manual_seed(3)
    head = make_action_head(space, name, -0.5, num_features=4)
    outputs = torch.randn(1, head.num_outputs + head.num_features)
    masks = torch.from_numpy(random_masks(sizes, 1, np.random.default_rng(5))) if masked else None
    parameters = head.parameters_of(outputs, masks).detach().expand(count, -1)
    actions = head.sample(parameters, head.noise((count,), torch.Generator().manual_seed(0)))
    columns = actions.reshape(count, -1).double()
    references = marginals(space, name, head, outputs, masks)
    for i, distribution in enumerate(references):
        x = columns[:, i]
        if isinstance(distribution, Categorical):
            # standard errors of at most .5 / sqrt(20,000) = .0035
            frequencies = x.long().bincount(minlength=distribution.probs.shape[1]) / count
            torch.testing.assert_close(frequencies, distribution.probs[0], rtol=0, atol=0.015, check_dtype=False)
            assert not masked or (frequencies[distribution.probs[0] == 0.0] == 0.0).all()
            continue
        base = distribution.base_dist if isinstance(distribution, TransformedDistribution) else distribution
        scale, shift = (2.0, -1.0) if base is not distribution else (1.0, 0.0)
        assert x.mean().item() == pytest.approx(scale * base.mean.item() + shift, abs=4.0 * x.std().item() / 141.0)
        assert x.std().item() == pytest.approx(scale * base.stddev.item(), rel=0.03)
    if columns.shape[1] > 1:  # and they are independent: |correlation| within 4 / sqrt(20,000) = .028
        varying = columns[:, columns.std(0) > 0.0]
        correlations = torch.corrcoef(varying.t()) - torch.eye(varying.shape[1])
        assert correlations.abs().max() < 0.03
    # -mean log p is the entropy, up to 4 standard errors
    log_probs = head.log_prob(parameters, actions).double()
    error = 4.0 * log_probs.std().item() / math.sqrt(count)
    assert -log_probs.mean().item() == pytest.approx(head.entropy(parameters)[0].item(), abs=error + 1e-5)


def test_gsde_explores_in_one_direction_for_a_rollout() -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (2,)), "gsde", num_features=3)
    noise = head.noise((5, 4), torch.Generator().manual_seed(0))
    parameters = head.parameters_of(torch.tensor([[0.0, 0.0, 1.0, -1.0, 0.5]])).expand(4, -1)
    steps = torch.stack([head.sample(parameters, noise[t]) for t in range(5)]).detach()
    assert (steps == steps[0]).all()
    assert len({tuple(row) for row in steps[0].tolist()}) == 4
    # features 1, -1, .5 of a log standard deviation of -log(3) / 2: variance (1 + 1 + .25) / 3
    assert parameters[0, 2].item() == pytest.approx(0.5 * math.log(2.25 / 3.0), abs=1e-5)


# ---------------------------------------------------------------- values worked out elsewhere


def test_squashed_gaussian_by_hand() -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (1,)), "tanh_gaussian")
    parameters, u = torch.tensor([[0.3, math.log(0.7)]]), torch.tensor([[1.1]])
    assert head.to_env(u).item() == pytest.approx(0.800499, abs=1e-6)
    assert head.log_prob(parameters, u).item() == pytest.approx(-0.191453, abs=1e-5)


@pytest.mark.parametrize("mean", [-20.0, 20.0])
def test_a_saturated_squashed_gaussian_stays_finite(mean: float) -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (1,)), "tanh_gaussian")
    parameters = torch.tensor([[mean, math.log(0.1)]], requires_grad=True)
    u = torch.tensor([[mean + 0.1]])
    log_prob = head.log_prob(parameters, u)
    # Normal: -.5 - log .1 - .918939 = .883646; slope: 2 (log 2 - |u| - softplus(-2|u|))
    size = abs(u.item())
    assert log_prob.item() == pytest.approx(0.883646 - 2.0 * (math.log(2.0) - size), abs=1e-3)
    (log_prob + head.entropy(parameters)).sum().backward()
    # d log p / d mean = z / std = 1 / .1
    assert torch.isfinite(parameters.grad).all() and head.to_env(u).abs().item() == 1.0


@pytest.mark.parametrize("log_std", [-3.0, 0.0, 1.0])
@pytest.mark.parametrize("mean", [0.0, 1.5, 6.0])
def test_the_entropy_of_a_squashed_gaussian_however_wide(mean: float, log_std: float) -> None:
    space = spaces.Box(-1.0, 1.0, (1,))
    head = make_action_head(space, "tanh_gaussian")
    expected = reference_entropy(space, "tanh_gaussian", [Normal(torch.tensor([mean]), torch.tensor([log_std]).exp())])
    assert head.entropy(torch.tensor([[mean, log_std]])).item() == pytest.approx(expected.item(), abs=2e-5)


def test_a_narrow_beta_keeps_its_precision() -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (1,)), "beta")
    p, q = torch.tensor([[5000.0, 300.0]]), torch.tensor([[5050.0, 303.0]])
    expected = kl_divergence(Beta(*p[0].double()), Beta(*q[0].double())).item()
    # about 2.5e-5; in float32 the logarithms of gamma functions, of size 40,000, leave an error of 2e-3
    assert head.kl(p, q).item() == pytest.approx(expected, rel=1e-3)


def test_a_flat_beta_has_its_mode_in_the_centre() -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (1,)), "beta")
    # 1 + softplus(-200) = 1 in float32; 1 + softplus(5) = 6.0067, so the other modes are at the bounds
    modes = head.mode(head.parameters_of(torch.tensor([[-200.0, -200.0], [5.0, -200.0], [-200.0, 5.0], [1.0, 1.0]])))
    torch.testing.assert_close(modes, torch.tensor([[0.0], [1.0], [-1.0], [0.0]]), rtol=0, atol=2e-6)


def test_factored_heads_multiply_probabilities_and_add_entropies() -> None:
    # heads of 3 choices with probabilities .090031, .244728, .665241 each
    space = spaces.MultiDiscrete([3, 3])
    head = make_action_head(space)
    parameters = torch.tensor([[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]])
    single = torch.tensor([0.090031, 0.244728, 0.665241])
    for i in range(3):
        for j in range(3):
            found = head.log_prob(parameters, torch.tensor([[i, j]])).exp().item()
            assert found == pytest.approx((single[i] * single[j]).item(), rel=1e-5)
    # three heads of two equal choices: 3 log 2
    zeros = make_action_head(spaces.MultiDiscrete([2, 2, 2])).entropy(torch.zeros(1, 6))
    assert zeros.item() == pytest.approx(2.079442, abs=1e-6)


@pytest.mark.parametrize(
    ("space", "elements", "expected"),
    [
        (spaces.Discrete(3), torch.tensor([2]), [[0, 0, 1]]),
        (spaces.Discrete(3, start=5), torch.tensor([5, 7]), [[1, 0, 0], [0, 0, 1]]),
        (spaces.MultiDiscrete([3, 2]), torch.tensor([[2, 0]]), [[0, 0, 1, 1, 0]]),
        # rows of two components with 2, 3, 4 and 1 values, the first of them 0, 1, -1 and 5
        (GRID, torch.tensor([[[1, 3], [-1, 5]]]), [[0, 1, 0, 0, 1, 1, 0, 0, 0, 1]]),
        (spaces.MultiBinary(3), torch.tensor([[1, 0, 1]], dtype=torch.int8), [[1, 0, 1]]),
    ],
    ids=str,
)
def test_what_networks_see_of_discrete_observations(space: Space, elements: Tensor, expected: list[list[int]]) -> None:
    agent = ActorCritic(space, spaces.Discrete(2))
    seen = agent.inputs(elements)
    assert seen.dtype == torch.float32 and seen.tolist() == expected


def test_each_entry_is_normalized_by_itself() -> None:
    space = spaces.Dict({"far": VECTOR, "image": IMAGE, "near": VECTOR, "mode": spaces.Discrete(2)})
    agent = ActorCritic(space, spaces.Discrete(2))
    data = {
        "far": 1000.0 + 50.0 * torch.randn(200, 1, 3),
        "near": 0.01 * torch.randn(200, 1, 3),
        "image": torch.randint(256, (200, 1, 36, 36, 3), dtype=torch.uint8),
        "mode": torch.randint(2, (200, 1)),
    }
    agent.inputs.update(data, torch.ones(200, 1, dtype=torch.bool), lambda x: x)
    assert set(agent.inputs.normalizers) == {"far", "near"}
    seen = agent.inputs(tree_map(lambda x: x[:, 0], data))
    for key in ("far", "near"):
        torch.testing.assert_close(seen[key].mean(0), torch.zeros(3), rtol=0, atol=1e-3)
        torch.testing.assert_close(seen[key].std(0), torch.ones(3), rtol=0, atol=1e-2)
    assert seen["image"].dtype == torch.uint8 and torch.equal(seen["image"], data["image"][:, 0])


def test_channels_first_and_last_are_the_same_image() -> None:
    last, first = (
        ActorCritic(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2)) for shape in ((84, 84, 3), (3, 84, 84))
    )
    first.load_state_dict(last.state_dict())
    images = torch.randint(256, (2, 84, 84, 3), dtype=torch.uint8)
    torch.testing.assert_close(last.value(images), first.value(images.movedim(-1, 1)))
    # pixels lie in [0, 1] in front of the first convolution
    cnn = last.network.actor_trunk.encoder.cnns[0]
    bright = torch.full((1, 84, 84, 3), 255, dtype=torch.uint8)
    seen = torch.nn.functional.conv2d(torch.ones(1, 3, 84, 84), cnn[0].weight, cnn[0].bias, cnn[0].stride)
    torch.testing.assert_close(cnn(bright), torch.nn.Sequential(*list(cnn)[1:])(seen))


def test_the_order_of_a_dict_does_not_matter() -> None:
    space = spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3), "c": VECTOR})
    agent = agent_of(space, spaces.Discrete(4), "gaussian")
    observations = observed(space, 9)
    shuffled = {key: observations[key] for key in ("c", "a", "b")}
    assert torch.equal(agent.value(observations), agent.value(shuffled))
    assert torch.equal(agent.distribution(observations), agent.distribution(shuffled))


def test_a_dict_of_one_vector_learns_as_the_vector_does() -> None:
    def vector() -> gymnasium.Env:
        return Anything(VECTOR, spaces.Discrete(2), length=7)

    def entry() -> gymnasium.Env:
        return TransformObservation(vector(), lambda x: {"vec": x}, spaces.Dict({"vec": VECTOR}))

    def trained(make: Callable[[], gymnasium.Env]) -> tuple[Tensor, ...]:
        pl.seed_everything(1, verbose=False)
        env = SyncVectorEnv([make] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
        data = RolloutDataModule(env, num_steps=16, rollouts_per_epoch=2, seed=3)
        model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 32, "epochs": 2})
        make_trainer().fit(model, data)
        return tuple(model.parameters())

    torch.testing.assert_close(trained(vector), trained(entry), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [spaces.Dict({}), spaces.Tuple(())], ids=str)
def test_a_space_without_entries_is_refused(space: Space) -> None:
    with pytest.raises(UnsupportedSpaceError, match="no entries"):
        ActorCritic(space, spaces.Discrete(2))


def test_entries_that_cannot_be_told_apart_are_refused() -> None:
    space = spaces.Dict({"a/b": VECTOR, "a": spaces.Dict({"b": VECTOR})})
    with pytest.raises(UnsupportedSpaceError, match="'a/b'"):
        ActorCritic(space, spaces.Discrete(2))


@pytest.mark.parametrize("name", ["tanh_gaussian", "beta"])
def test_a_distribution_that_needs_bounds_says_so(name: str) -> None:
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1.0, np.inf, (1,))})
    with pytest.raises(UnsupportedSpaceError, match=f"{name} needs an action space with finite bounds; use gaussian"):
        make_action_head(space, name)


def test_gsde_needs_the_built_in_network() -> None:
    settings = PolicyConfig(distribution="gsde", network="torch.nn.Bilinear")
    with pytest.raises(ConfigError, match="gsde needs the features"):
        ActorCritic(VECTOR, ARM, settings)


# ---------------------------------------------------------------- acting and compiling


@pytest.mark.parametrize("core", [None, "lstm", "gru"])
@pytest.mark.parametrize("shared", [False, True], ids=["two trunks", "one"])
@pytest.mark.parametrize("masked", [False, True], ids=["all legal", "masked"])
def test_numpy_acts_as_torch_does(masked: bool, shared: bool, core: str | None) -> None:
    for action in (spaces.Discrete(4, start=3), ARM)[: 1 if masked else 2]:
        agent = agent_of(VECTOR, action, "gaussian", gain=100.0, core=core, core_size=4, shared_trunk=shared)
        assert NumpyActor.suits(agent)
        for trunk in (agent.network.actor_trunk, agent.network.critic_trunk) if core else ():
            for parameter in trunk.core.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        state = torch.randn(5, agent.state_size) if core else None
        actors = [kind(agent, (6, 5), torch.Generator().manual_seed(2), state) for kind in (NumpyActor, TorchActor)]
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for t in range(6):
                observations = rng.normal(1.0, 2.0, (5, 3)).astype(np.float32)
                masks = random_masks([4], 5, rng) if masked else None
                starts = rng.random(5) < 0.3
                numpy, torch_ = (actor(t, observations, starts, masks) for actor in actors)
                np.testing.assert_allclose(numpy, torch_, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(actors[0].actions, actors[1].actions, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(actors[0].states, actors[1].states, rtol=0.0, atol=1e-5)
        torch.testing.assert_close(actors[0].state, actors[1].state, rtol=0.0, atol=1e-5)


@pytest.mark.compiled
def test_compiled_gradients_are_those_of_eager_mode() -> None:
    observation = spaces.Dict({"mode": spaces.Discrete(3, start=2), "vec": VECTOR})
    action = spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(0.0, 1.0, (1,))))

    def weights(compile: bool) -> Tensor:
        pl.seed_everything(1, verbose=False)
        makers = [lambda: Anything(observation, action, True)] * 4
        env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        data = RolloutDataModule(env, num_steps=8, rollouts_per_epoch=1, seed=3)
        model = PPO(
            data.observation_space,
            data.action_space,
            update={"minibatch_size": 16, "epochs": 2, "entropy_coefficient": 0.01},
            policy={"hidden_sizes": [8], "distribution": "beta"},
            compile=compile,
        )
        make_trainer().fit(model, data)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(weights(True), weights(False), rtol=1e-3, atol=1e-4)
