"""The policy objectives: what each needs of a minibatch, and the coefficient it adapts.

An objective of your own is a subclass of `PolicyObjective`, named in the setting `objective` by its class path. The
names of those here are in `settings/algorithm.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic, Evaluation
from lightning_ppo.rollout.shapes import Minibatch
from lightning_ppo.settings.algorithm import OBJECTIVES, UpdateConfig, resolve_epochs
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.objectives import (
    adapted_coefficient,
    clipped_surrogate_loss,
    kl_penalty_loss,
    masked_log_ratios,
    policy_gradient_loss,
    surrogate_loss,
)


class PolicyTerms(NamedTuple):
    """The terms of an objective, each (B,)."""

    log_probs: Tensor
    """log pi(a|s) of the current policy."""
    log_ratios: Tensor
    """log pi(a|s) - log pi_old(a|s)."""
    advantages: Tensor
    kl: Tensor | None
    """Exact KL(pi_old || pi) in each state where the objective `needs_kl`, else None."""


def policy_terms(
    objective: "PolicyObjective", policy: ActorCritic, now: Evaluation, minibatch: Minibatch
) -> PolicyTerms:
    """Return the terms of an objective, given the policy's current outputs for a minibatch."""
    log_ratios = masked_log_ratios(now.log_probs, minibatch.log_probs, minibatch.weights)
    kl = policy.head.kl(minibatch.distribution, now.distribution) if objective.needs_kl else None
    return PolicyTerms(now.log_probs, log_ratios, minibatch.advantages, kl)


class PolicyObjective(nn.Module, ABC):
    """Base of the policy objectives.

    Attributes:
        needs_kl: Whether it takes the exact KL divergence.
        trust_region: Whether the policy takes one step within a trust region per iteration (see `trust_region`), and
            the minibatches are the critic's alone.

    Args:
        update: Settings of the `update` section.
    """

    needs_kl = False
    trust_region = False

    def __init__(self, update: UpdateConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, terms: PolicyTerms, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of each transition, (B,).

        Args:
            terms: The terms of the objective.
            coefficients: Current values of the scheduled settings of the `update` section, tensors of shape ().
        """

    def coefficients(self) -> dict[str, float]:
        """Return coefficients that the objective adapts, by the names under which they are logged."""
        return {}

    def after_iteration(self, kl: float, coefficients: Mapping[str, float]) -> None:
        """Adapt to an iteration.

        Args:
            kl: Its exact KL divergence, the same on all ranks.
            coefficients: The values that the scheduled settings of the `update` section had.
        """


class Clip(PolicyObjective):
    """The clipped surrogate, L^CLIP."""

    def forward(self, terms: PolicyTerms, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the clipped surrogate loss."""
        low, high = coefficients["clip_range"], coefficients.get("clip_range_high")
        return clipped_surrogate_loss(terms.log_ratios, terms.advantages, low, high)


class PolicyGradient(PolicyObjective):
    """The vanilla policy gradient, L^PG."""

    def forward(self, terms: PolicyTerms, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the policy gradient loss."""
        return policy_gradient_loss(terms.log_probs, terms.advantages)


class Surrogate(PolicyObjective):
    """The surrogate with neither clipping nor penalty, L^CPI."""

    def forward(self, terms: PolicyTerms, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the surrogate loss."""
        return surrogate_loss(terms.log_ratios, terms.advantages)


class KLPenalty(PolicyObjective):
    """The surrogate with a fixed KL penalty, L^KLPEN."""

    needs_kl = True

    def forward(self, terms: PolicyTerms, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the penalised surrogate loss."""
        assert terms.kl is not None
        return kl_penalty_loss(terms.log_ratios, terms.advantages, terms.kl, coefficients["kl_coefficient"])


class AdaptiveKL(PolicyObjective):
    """The surrogate with a KL penalty whose coefficient follows the measured KL; the coefficient is in checkpoints."""

    needs_kl = True
    coefficient: Tensor

    def __init__(self, update: UpdateConfig) -> None:
        super().__init__(update)
        start = update.schedules()["kl_coefficient"](0.0)
        if start <= 0.0:
            raise ConfigError(f"update.kl_coefficient: adaptive_kl multiplies it, so it cannot start at {start:g}")
        self.register_buffer("coefficient", torch.tensor(start))

    def forward(self, terms: PolicyTerms, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the penalised surrogate loss."""
        assert terms.kl is not None
        return kl_penalty_loss(terms.log_ratios, terms.advantages, terms.kl, self.coefficient)

    def coefficients(self) -> dict[str, float]:
        """Return beta, in the place of its start."""
        return {"kl_coefficient": float(self.coefficient)}

    def after_iteration(self, kl: float, coefficients: Mapping[str, float]) -> None:
        """Halve or double the coefficient if KL is far from the target."""
        self.coefficient.fill_(adapted_coefficient(float(self.coefficient), kl, coefficients["kl_target"]))


class TrustRegionSurrogate(Surrogate):
    """The surrogate subject to a bound on the exact KL divergence (TRPO)."""

    trust_region = True


def resolved_objective(entry: Any, update: UpdateConfig) -> tuple[PolicyObjective, UpdateConfig]:
    """Return an objective, and the settings with the number of epochs that it takes where none is given.

    Raises:
        ConfigError: If there is no such objective, or it has no ratio that would allow more than one pass.
    """
    epochs = resolve_epochs(entry, update)
    objective = OBJECTIVES.instantiate(entry, update)
    if isinstance(objective, PolicyGradient):  # one that is derived from it has no ratio either
        epochs = resolve_epochs("policy_gradient", update)
    return objective, replace(update, epochs=epochs)
