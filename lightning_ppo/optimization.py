"""How gradients are made and applied: the compiled minibatch, gradient clipping, the steered learning rate."""

import math
import textwrap
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim.lr_scheduler import LRScheduler

from lightning_ppo.distributed import max_over_ranks
from lightning_ppo.errors import ConfigError
from lightning_ppo.rollout import Minibatch, select

Loss = Callable[[Minibatch], tuple[Tensor, tuple[Tensor, ...]]]


class SteeredLearningRate(LRScheduler):
    """Hands the learning rate that PPO computes to the optimizer, where Lightning's callbacks look for it."""

    def __init__(self, optimizer: torch.optim.Optimizer, value: float) -> None:
        self.value = value
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the value for every parameter group."""
        return [self.value] * len(self.optimizer.param_groups)

    def set(self, value: float) -> None:
        """Use `value` from now on."""
        self.value = value
        for group in self.optimizer.param_groups:
            group["lr"] = value
        self._last_lr = self.get_lr()


class _LossModule(nn.Module):
    """A loss as the `forward` of a module that holds its parameters, which is what `functional_call` takes."""

    def __init__(self, policy: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.policy = policy
        self.loss = loss

    def forward(self, minibatch: Minibatch) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.loss(minibatch)


class CompiledGradients:
    """Forward and backward of the minibatch loss as one compiled graph, written into the parameters' `grad`.

    All gradients live in one flat buffer, so that clipping and averaging over ranks are single operations.

    Attributes:
        flat: The buffer, (number of parameters,).
        compile_seconds: Time that compiling took, None before.

    Args:
        policy: Its trainable parameters get the gradients.
        loss: Computes loss and statistics of a minibatch from `policy`.
    """

    def __init__(self, policy: nn.Module, loss: Loss) -> None:
        module = _LossModule(policy, loss)
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._parameters = {name: p.detach() for name, p in named.items()}
        self.flat = torch.zeros(sum(p.numel() for p in named.values()), device=next(iter(named.values())).device)
        pieces = self.flat.split([p.numel() for p in named.values()])
        self._views = [(p, piece.view_as(p)) for p, piece in zip(named.values(), pieces, strict=True)]
        self.compile_seconds: float | None = None

        def gradients(
            parameters: dict[str, Tensor], batch: Minibatch, rows: Tensor, scale: Tensor
        ) -> tuple[Tensor, Tensor]:
            minibatch = select(batch, rows, scale)

            def of_parameters(values: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
                return functional_call(module, values, (minibatch,))

            grads, (_, reported) = grad_and_value(of_parameters, has_aux=True)(parameters)
            return torch.cat([grads[name].reshape(-1) for name in parameters]), torch.stack(reported)

        # the compiler counts recompilations per code object, so each instance, with its own sizes, brings its own
        gradients.__code__ = gradients.__code__.replace()
        self._gradients = torch.compile(gradients, fullgraph=True, dynamic=False)

    def prepare(self, batch: Minibatch, minibatch_size: int) -> bool:
        """Get ready for an iteration, the first time by compiling; return False, with a warning, if a rank cannot.

        Compiling leaves the random state as it is: a resumed run compiles again, and has to draw the same numbers.

        Args:
            batch: The rows of a rollout.
            minibatch_size: B, of every minibatch to come.
        """
        if self.compile_seconds is None:
            started = time.perf_counter()
            failure = self._compile(batch, minibatch_size)
            self.compile_seconds = time.perf_counter() - started
            failed = torch.tensor([failure is not None], dtype=torch.float32, device=self.flat.device)
            if max_over_ranks(failed):
                reason = failure or "another rank cannot compile"
                rank_zero_warn(f"compile: {reason}; training goes on uncompiled")
                return False
        for parameter, view in self._views:
            parameter.grad = view  # Lightning sets gradients to None now and then
        return True

    def _compile(self, batch: Minibatch, minibatch_size: int) -> str | None:
        """Compile for minibatches of one size; return why that failed."""
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        device = self.flat.device
        try:
            if device.type == "cpu":
                get_cpp_compiler()
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self(batch, torch.arange(minibatch_size, device=device), torch.ones((), device=device))
        except InvalidCxxCompiler:
            return "no C++ compiler was found, install g++"
        except TorchDynamoException as error:
            return f"the loss cannot be traced ({textwrap.shorten(str(error), 200)})"
        return None

    def __call__(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> Tensor:
        """Set the gradients of the minibatch `rows` (B,) of a flat batch and return its statistics, stacked."""
        flat, reported = self._gradients(self._parameters, batch, rows, scale)
        self.flat.copy_(flat)
        return reported


class Snapshot:
    """Weights and optimizer state as they are now, to be put back.

    Args:
        parameters: The weights.
        optimizer: Their optimizer.
    """

    def __init__(self, parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._fresh = optimizer, not optimizer.state
        tensors = [parameter.detach() for parameter in parameters]
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        self._saved = [(tensor, tensor.clone()) for tensor in tensors]

    def restore(self) -> None:
        """Put the saved values back."""
        for tensor, saved in self._saved:
            tensor.copy_(saved)
        if self._fresh:
            self._optimizer.state.clear()


def update_settings(optimizer: torch.optim.Optimizer, **settings: Any) -> None:
    """Use settings in every parameter group; loading a checkpoint brings back those that were saved."""
    for group in optimizer.param_groups:
        group.update(settings)


def step_schedulers(schedulers: Any) -> None:
    """Step learning-rate schedulers of a user's own `configure_optimizers`, once per iteration.

    Args:
        schedulers: One, several or none, as Lightning's `lr_schedulers()` returns them.

    Raises:
        ConfigError: If one of them waits for a metric, which manual optimisation does not hand it.
    """
    if schedulers is None:
        return
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError("configure_optimizers: ReduceLROnPlateau is not stepped here; step it in a callback")
        scheduler.step()


def clip_gradients(parameters: Iterable[nn.Parameter], flat: Tensor | None, bound: float | None) -> Tensor:
    """Scale gradients to a global norm of at most `bound`, in place, and return the norm they had.

    Args:
        parameters: Their gradients are clipped.
        flat: The one buffer in which all of them lie, where there is one.
        bound: None only measures.
    """
    if flat is None:
        return nn.utils.clip_grad_norm_(parameters, math.inf if bound is None else bound)
    norm = torch.linalg.vector_norm(flat)
    if bound is not None:
        flat.mul_((bound / (norm + 1e-6)).clamp(max=1.0))
    return norm
