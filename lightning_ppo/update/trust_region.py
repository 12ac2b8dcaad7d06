"""One step of Trust Region Policy Optimization as an optimizer (Schulman et al. 2015, arXiv:1502.05477, appendix C)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_ppo.policy.actor_critic import ActorCritic, eval_mode
from lightning_ppo.rollout.shapes import Minibatch
from lightning_ppo.settings.algorithm import TrustRegionConfig
from lightning_ppo.support.distributed import Reduce, mean_over_ranks

ConstrainedLoss = Callable[[Minibatch], tuple[Tensor, Tensor]]
"""Loss and divergence, both of shape ()."""


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors of any shapes as one vector (P,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve A x = b for a symmetric positive-definite A (Hestenes and Stiefel 1952), starting at 0.

    Args:
        product: Returns A v (P,) for v (P,).
        b: (P,).
        iterations: At most so many products.
        tolerance: The solution is good enough where the squared norm of b - A x is at most this share of that of b.

    Returns:
        x, (P,).
    """
    x = torch.zeros_like(b)
    residual, direction = b.clone(), b.clone()
    squared = residual @ residual
    enough = tolerance * squared
    for _ in range(iterations):
        if squared <= enough:
            break
        mapped = product(direction)
        step = squared / (direction @ mapped)
        x += step * direction
        residual -= step * mapped
        previous, squared = squared, residual @ residual
        direction = residual + squared / previous * direction
    return x


class FisherProduct:
    """Fisher-vector products, damped: the Hessian of the mean KL divergence from the policy where it now is.

    That Hessian is the Fisher information matrix. No matrix is formed: its product with v is the gradient of
    (gradient of KL) . v (Pearlmutter 1994).

    Args:
        divergence: (), the mean KL divergence, with a graph.
        parameters: The variables of the differentiation.
        damping: Multiple of the identity that is added.
        average: The mean over all ranks.
    """

    def __init__(self, divergence: Tensor, parameters: Sequence[Tensor], damping: float, average: Reduce) -> None:
        self.parameters = parameters
        self.damping = damping
        self.average = average
        self.gradient = flatten(torch.autograd.grad(divergence, parameters, create_graph=True))

    def __call__(self, v: Tensor) -> Tensor:
        """Return (F + damping I) v, (P,)."""
        with torch.enable_grad():
            products = torch.autograd.grad(
                self.gradient @ v, self.parameters, retain_graph=True, materialize_grads=True
            )
        return self.average(flatten(products)) + self.damping * v


class TrustRegionStep(NamedTuple):
    """The result of one step."""

    step_fraction: float = 0.0
    """Share of the largest step within the trust region that was taken; 0 if the step was rejected."""
    improvement: float = 0.0
    """Decrease of the loss."""
    kl: float = 0.0
    """Mean KL divergence of the policy before the step from the one after it."""


class TrustRegion(torch.optim.Optimizer):
    """Minimises a loss subject to a bound on a mean KL divergence.

    The step is the solution of the problem with a linear model of the loss and a quadratic model of the divergence,
    which conjugate gradients find. It is halved until the loss has decreased and the divergence is within its bound;
    if it never is, the parameters are restored bit for bit.

    `step` takes a closure, as that of LBFGS does. It returns the loss and the mean divergence, both of shape () with a
    graph, and calls no `backward`. Parameters that the divergence does not depend on are left alone.

    Args:
        params: What may move.
        max_kl: Delta, bound on the mean divergence of a step, in nats.
        damping: Multiple of the identity added to the Fisher matrix.
        cg_iterations: Iterations of conjugate gradients.
        line_search_steps: Lengths that are tried, each half the one before.
        average: The mean of a tensor over all ranks; with it, all ranks take the same step.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        max_kl: float = 0.01,
        damping: float = 0.1,
        cg_iterations: int = 10,
        line_search_steps: int = 10,
        average: Reduce = lambda tensor: tensor,
    ) -> None:
        super().__init__(params, {})
        self.max_kl = max_kl
        self.damping = damping
        self.cg_iterations = cg_iterations
        self.line_search_steps = line_search_steps
        self.average = average
        self.last = TrustRegionStep()
        """The result of the latest step."""
        self.unmoved: list[Tensor] = []
        """Parameters that the divergence did not depend on in the latest step."""

    def follow(self, coefficients: Mapping[str, float]) -> None:
        """Take the current values of what is scheduled."""
        self.max_kl, self.damping = coefficients["max_kl"], coefficients["damping"]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from; the base class knows of parameters and their state only."""
        names = ("max_kl", "damping", "cg_iterations", "line_search_steps", "average", "last", "unmoved")
        return super().__getstate__() | {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the loss before it.

        Args:
            closure: Returns loss and divergence, as the class says.

        Raises:
            TypeError: Without a closure.
        """
        if closure is None:
            raise TypeError("TrustRegion.step needs a closure that returns the loss and the divergence")
        # cuDNN's recurrent layers have no second derivative, nor a first one in eval mode; losses that are compared
        # come from the same kernels
        with torch.backends.cudnn.flags(enabled=False):
            return self._step(closure)

    def _step(self, closure: Callable[[], Any]) -> Any:
        self.last = TrustRegionStep()
        with torch.enable_grad():
            loss, divergence = closure()
            moving = self._split(divergence)
            gradient = self.average(
                flatten(torch.autograd.grad(loss, moving, retain_graph=True, materialize_grads=True))
            )
            product = FisherProduct(divergence, moving, self.damping, self.average)
        old_loss = self.average(loss.detach())
        if not gradient.any():
            return old_loss
        direction = conjugate_gradients(product, -gradient, self.cg_iterations)
        # the length at which the quadratic model of the divergence, s F s / 2, reaches its bound
        longest = (2.0 * self.max_kl / (direction @ product(direction))).sqrt() * direction
        before = [p.clone() for p in moving]
        for halvings in range(self.line_search_steps):
            fraction = 0.5**halvings
            for parameter, value, piece in zip(moving, before, _pieces(fraction * longest, moving), strict=True):
                parameter.copy_(value + piece)
            new_loss, new_divergence = self.average(torch.stack(closure())).unbind()
            improvement, kl = float(old_loss - new_loss), float(new_divergence)
            if improvement > 0.0 and kl <= self.max_kl:
                self.last = TrustRegionStep(fraction, improvement, kl)
                return old_loss
        for parameter, value in zip(moving, before, strict=True):
            parameter.copy_(value)
        return old_loss

    def _split(self, divergence: Tensor) -> list[Tensor]:
        """Return the parameters that the divergence depends on, and keep the others as `unmoved`."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        gradients = torch.autograd.grad(divergence, parameters, retain_graph=True, allow_unused=True)
        used = [gradient is not None for gradient in gradients]
        self.unmoved = [p for p, moves in zip(parameters, used, strict=True) if not moves]
        return [p for p, moves in zip(parameters, used, strict=True) if moves]


def make_trust_region(settings: TrustRegionConfig, parameters: Iterable[Tensor]) -> TrustRegion:
    """Return the trust region that settings describe, the same on all ranks."""
    values = {name: schedule(0.0) for name, schedule in settings.schedules().items()}
    steps = settings.cg_iterations, settings.line_search_steps
    return TrustRegion(parameters, values["max_kl"], values["damping"], *steps, mean_over_ranks)


def step_policy(region: TrustRegion, policy: ActorCritic, batch: Minibatch, loss: ConstrainedLoss) -> None:
    """Move a policy within its trust region, once, on a whole rollout.

    Args:
        region: Of the policy.
        policy: In its eval mode while it is compared with itself.
        batch: The rollout's rows.
        loss: Returns loss and mean divergence of a batch whose weights sum to 1 over all ranks, on average.
    """
    whole = batch._replace(weights=batch.weights / region.average(batch.weights.sum()))
    with eval_mode(policy):
        region.step(lambda: loss(whole))


def set_gradients(loss: Tensor, parameters: Sequence[Tensor], average: Reduce) -> None:
    """Make the mean over all ranks of the loss's gradients the `grad` of these parameters, and of no others."""
    if not parameters:
        return
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    for parameter, gradient in zip(parameters, _pieces(average(flatten(gradients)), parameters), strict=True):
        parameter.grad = gradient


def _pieces(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a vector (P,) in the shapes of `like`; the inverse of `flatten`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]
