"""Losses added to that of a first-order objective, each a small class with a weight, named in `loss_terms`.

    loss_terms:
      - class_path: lightning_ppo.update.loss_terms.ActionSmoothness
        init_args: {scale: 0.05}
        weight: {kind: linear, start: 0.0, end: 0.1}

A term of your own is a subclass of `LossTerm`, named by its class path.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic, Evaluation
from lightning_ppo.policy.distributions import ActionHead, CategoricalHead, GaussianHead
from lightning_ppo.policy.inputs import is_image
from lightning_ppo.rollout.shapes import Minibatch
from lightning_ppo.settings.algorithm import LOSS_TERMS
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.tree import tree_map
from lightning_ppo.update.objectives import masked_log_ratios
from lightning_ppo.update.reports import LOSSES


class LossTerm(nn.Module, ABC):
    """Base of the loss terms; parameters of its own are trained with those of the policy.

    Args:
        policy: The policy it will be applied to; do not keep a reference.
    """

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, policy: ActorCritic, minibatch: Minibatch, now: Evaluation) -> Tensor:
        """Return what to minimise in each transition, (B,).

        Args:
            policy: The current policy, to evaluate other observations.
            minibatch: B transitions.
            now: The outputs of the current policy for them.
        """


class DualClip(LossTerm):
    """With weight 1, bounds the loss of the objectives `clip` and `surrogate` where the advantage is negative.

    There the surrogate r A falls without end as the ratio r rises. Dual-clip PPO takes max(r A, c A) instead (Ye et al.
    2020, "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning"); this term is the difference.

    Args:
        policy: The policy.
        bound: c, greater than 1 and than where the objective clips.
    """

    def __init__(self, policy: ActorCritic, bound: float = 3.0) -> None:
        super().__init__(policy)
        if bound <= 1.0:
            raise ConfigError(f"bound must be greater than 1, got {bound}")
        self.bound = bound

    def forward(self, policy: ActorCritic, minibatch: Minibatch, now: Evaluation) -> Tensor:
        """Return (r - c) A where r > c and A < 0, else 0."""
        counted = minibatch.weights * (minibatch.advantages < 0.0)
        ratios = masked_log_ratios(now.log_probs, minibatch.log_probs, counted).exp()
        return (ratios - self.bound).clamp(min=0.0) * minibatch.advantages.clamp(max=0.0)


class ActionSmoothness(LossTerm):
    """KL divergence between the action distributions at an observation and at one with noise added to its Box parts.

    The spatial smoothness of Mysore et al. 2021, "Regularizing Action Policies for Smooth Control with Reinforcement
    Learning" (CAPS), with the KL divergence as the distance, which every action distribution has. For
    Gaussians whose standard deviation does not depend on the observation it is half the squared distance of their mean
    actions in units of that standard deviation.

    Args:
        policy: The policy.
        scale: Standard deviation of the noise, in those of the observations where these are normalised.
    """

    def __init__(self, policy: ActorCritic, scale: float = 0.05) -> None:
        super().__init__(policy)
        if scale <= 0.0:
            raise ConfigError(f"scale must be positive, got {scale}")
        if not any(isinstance(leaf, spaces.Box) and not is_image(leaf) for leaf in policy.inputs.leaves.values()):
            raise ConfigError("noise is added to Box observations that are no images, and there is none")
        self.scale = scale

    def forward(self, policy: ActorCritic, minibatch: Minibatch, now: Evaluation) -> Tensor:
        """Return the divergence of each transition, (B,)."""
        leaves = list(policy.inputs.leaves.values())

        def perturb(number: int, x: Tensor) -> Tensor:
            continuous = isinstance(leaves[number], spaces.Box) and x.is_floating_point()
            return x + self.scale * torch.randn_like(x) if continuous else x

        inputs = tree_map(perturb, policy.inputs.structure, policy.inputs(minibatch.observations))
        outputs = policy.network.actor(inputs, minibatch.states, minibatch.starts)
        return policy.head.kl(now.distribution, policy.head.parameters_of(outputs, minibatch.action_masks))


class MirrorSymmetry(LossTerm):
    """KL divergence between the policy and its mirror image: what it does in the mirrored state, mirrored back.

    The symmetry loss of Yu et al. 2018, "Learning Symmetric and Low-Energy Locomotion", with the KL divergence as the
    distance, so that discrete actions have it too.

    Mirroring takes entry i of a vector from entry `indices[i]` and multiplies it by `signs[i]`; doing it twice must
    change nothing. Observations are mirrored as the environment gives them, actions in the policy's units, in which a
    bounded dimension spans [-1, 1].

    Args:
        policy: The policy.
        observation_indices: For each entry of a vector observation, the one that the mirror puts there.
        action_indices: The same for the entries of a continuous action, or for discrete actions themselves.
        observation_signs: 1 or -1 for each entry; None keeps all.
        action_signs: The same for a continuous action.
    """

    observation_indices: Tensor
    observation_signs: Tensor
    action_indices: Tensor
    action_signs: Tensor

    def __init__(
        self,
        policy: ActorCritic,
        observation_indices: Sequence[int],
        action_indices: Sequence[int],
        observation_signs: Sequence[float] | None = None,
        action_signs: Sequence[float] | None = None,
    ) -> None:
        super().__init__(policy)
        head = policy.head
        leaf = policy.inputs.leaves.get("")
        shape = leaf.shape if isinstance(leaf, spaces.Box) else ()
        if type(head) not in (CategoricalHead, GaussianHead) or len(shape) != 1 or policy.state_size:
            raise ConfigError(
                "a mirror is defined for vector observations, Discrete actions or Box actions with "
                "policy.distribution=gaussian, and no recurrence"
            )
        if isinstance(head, CategoricalHead) and action_signs is not None:
            raise ConfigError("action_signs: discrete actions have no sign")
        sizes = {"observation": shape[0], "action": head.num_outputs}
        given = {
            "observation": (observation_indices, observation_signs),
            "action": (action_indices, action_signs),
        }
        for kind, (indices, signs) in given.items():
            signs = [1.0] * len(indices) if signs is None else signs
            _check_mirror(kind, list(indices), list(signs), sizes[kind])
            self.register_buffer(f"{kind}_indices", torch.tensor(indices), persistent=False)
            self.register_buffer(f"{kind}_signs", torch.tensor(signs, dtype=torch.float32), persistent=False)

    def forward(self, policy: ActorCritic, minibatch: Minibatch, now: Evaluation) -> Tensor:
        """Return the divergence of each transition, (B,)."""
        assert isinstance(minibatch.observations, Tensor)
        mirrored = minibatch.observations[:, self.observation_indices] * self.observation_signs
        masks = minibatch.action_masks
        if masks is not None:
            masks = masks[:, self.action_indices]
        return policy.head.kl(now.distribution, self._mirror(policy.head, policy.distribution(mirrored, masks)))

    def _mirror(self, head: ActionHead, parameters: Tensor) -> Tensor:
        if isinstance(head, CategoricalHead):
            return parameters[:, self.action_indices]
        mean, log_std = parameters.chunk(2, -1)
        return torch.cat((mean[:, self.action_indices] * self.action_signs, log_std[:, self.action_indices]), -1)


def _check_mirror(kind: str, indices: list[int], signs: list[float], size: int) -> None:
    if len(indices) != size or len(signs) != size:
        raise ConfigError(f"{kind}_indices and {kind}_signs need {size} entries, got {len(indices)} and {len(signs)}")
    if any(sign not in (1, -1) for sign in signs):
        raise ConfigError(f"{kind}_signs: every sign is 1 or -1, got {signs}")
    if sorted(indices) != list(range(size)) or any(indices[j] != i for i, j in enumerate(indices)):
        raise ConfigError(f"{kind}_indices: mirroring twice must change nothing, which is not so with {indices}")
    for i, j in enumerate(indices):
        if signs[i] != signs[j]:
            raise ConfigError(f"{kind}_signs: entries {i} and {j} change places, so they need the same sign: {signs}")


def make_loss_terms(entries: Sequence[Any], policy: ActorCritic) -> tuple[dict[str, LossTerm], dict[str, Schedule]]:
    """Return the terms and their weights by name, which is that of the class in snake case.

    A term whose weight is always 0 is left out, so that it costs nothing and draws no random numbers.

    Args:
        entries: Class paths, or mappings of `class_path`, `init_args` and `weight` (1 if not given).
        policy: The policy they will be applied to.

    Raises:
        ConfigError: If an entry is none of these, cannot be built, or has the name of another.
    """
    terms: dict[str, LossTerm] = {}
    weights: dict[str, Schedule] = {}
    for entry in entries:
        settings = dict(entry) if isinstance(entry, Mapping) else {"class_path": entry}
        unknown = set(settings) - {"class_path", "init_args", "weight"}
        if unknown:
            raise ConfigError(f"loss_terms: expected class_path, init_args and weight, got {sorted(unknown)[0]!r}")
        weight = Schedule.parse(settings.pop("weight", 1.0), f"loss_terms: weight of {settings.get('class_path')}")
        if not any(weight.values):
            LOSS_TERMS.load(settings)
            continue
        term = LOSS_TERMS.instantiate(settings, policy)
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(term).__name__).lower()
        if name in terms or f"loss/{name}" in LOSSES or hasattr(nn.ModuleDict, name):
            raise ConfigError(f"loss_terms: the name {name} is taken; derive a class with a name of its own from it")
        terms[name], weights[name] = term, weight
    return terms, weights
