"""How gradients are made and applied: eager and compiled minibatches, clipping, steps."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor, nn

from lightning_ppo.rollout.shapes import Minibatch, select
from lightning_ppo.speed import shortcuts, switch
from lightning_ppo.speed.compiled_gradients import CompiledGradients
from lightning_ppo.speed.flat import FlatAdam, FlatParameters
from lightning_ppo.speed.internals import listener_of
from lightning_ppo.support.distributed import max_over_ranks, mean_over_ranks, world_size
from lightning_ppo.support.errors import ConfigError, one_line
from lightning_ppo.update.compiling import own_code
from lightning_ppo.update.reports import MinibatchReport

_log = logging.getLogger(__name__)

Loss = Callable[[Minibatch], tuple[Tensor, MinibatchReport]]


class MinibatchUpdate:
    """Makes gradients of minibatches and applies them, in the shortest way that a fit allows.

    Lightning's hooks around each of the hundreds of backward passes and steps of an iteration cost a fifth of an eager
    update of a small network, also where nobody listens to them. They are left out where module and callbacks override
    none of them, the strategy is one device or DDP, whose averaging is done here, and gradients are not scaled.
    Parameters and gradients then lie in one buffer each (see `flat`), as they do where the update is compiled. With
    `plain` every minibatch goes Lightning's way: `manual_backward`, and `step` of each optimizer.

    Attributes:
        latest_compile_seconds: Time that compiling took in the latest `prepare`.

    Args:
        module: Its parameters are updated.
        loss: Computes loss and statistics of a minibatch.
        optimizers: Over disjoint parameters.
        compile: Compile forward and backward of the loss into one graph; with `auto`, only as long as nothing speaks
            against it, which a line says.
    """

    def __init__(
        self, module: pl.LightningModule, loss: Loss, optimizers: Sequence[LightningOptimizer], compile: bool | str
    ) -> None:
        self.module = module
        self.loss = loss
        self.optimizers = optimizers
        self.compile = compile
        self.latest_compile_seconds = 0.0
        hooks = "on_before_backward", "on_after_backward", "backward"
        self._short_backward = switch.is_on() and shortcuts.nobody_listens(module, *hooks)
        self._short_step = switch.is_on() and shortcuts.nobody_listens(module, "on_before_optimizer_step")
        self._trained: list[nn.Parameter] = []
        self._flat: FlatParameters | None = None
        self._compiled: CompiledGradients | None = None

    def prepare(self, batch: Minibatch, minibatch_size: int) -> None:
        """Get ready for an iteration over the rows of a rollout, in minibatches of B.

        Raises:
            ConfigError: If no parameter can be trained.
        """
        self.latest_compile_seconds = 0.0
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("nothing can be trained: all parameters are frozen (requires_grad=False)")
        if [*map(id, trained)] != [*map(id, self._trained)]:  # the first time, or some were frozen or freed
            self._trained, self._flat, self._compiled = trained, None, None
            if (self._short_backward or self.compile) and FlatParameters.suits(trained):
                self._flat = FlatParameters(trained)
                self._compile(batch, minibatch_size)
        if self._compiled is not None:
            self._compiled.alike = False  # callbacks may have changed what the loss reads
        if self._flat is not None:
            self._flat.attach()
            for optimizer in self.optimizers:
                if isinstance(optimizer.optimizer, FlatAdam):
                    optimizer.optimizer.lay_out(self._flat)

    def _compile(self, batch: Minibatch, minibatch_size: int) -> None:
        """Compile if requested; continue uncompiled, with a line, if a rank cannot."""
        if not self.compile or self._flat is None:
            return
        started = time.perf_counter()
        self._flat.attach()
        loss, device = self.loss, batch.weights.device
        self._compiled = CompiledGradients(
            self.module,
            self._flat,
            lambda batch, rows, scale: loss(select(batch, rows, scale)),
            pure=self._only_computes(),
        )
        rows, scale = torch.arange(minibatch_size, device=device), torch.ones((), device=device)
        failure = listener_of(self.module) if self.compile == "auto" else None
        try:
            failure = failure or self._compiled.compile(batch, rows, scale)
        except Exception as error:
            if self.compile != "auto":
                raise
            failure = one_line(error, 200)
        self.latest_compile_seconds = time.perf_counter() - started
        failed = torch.tensor([failure is not None], dtype=torch.float32, device=device)
        if max_over_ranks(failed):
            self._leave_uncompiled(failure or "another rank cannot compile")

    def _only_computes(self) -> bool:
        """Return whether no code of the user's own runs between the minibatches of an iteration, or in their losses."""
        ours = type(self.module).__module__.startswith("lightning_ppo.")
        return ours and self._short_step and not own_code(self.module)

    def _leave_uncompiled(self, reason: str) -> None:
        say = rank_zero_only(_log.warning) if self.compile == "auto" else rank_zero_warn
        self._compiled, self.compile = None, False
        say(f"compile: {reason}; training continues uncompiled")

    def release(self) -> None:
        """Release the batch at the end of an iteration."""
        if self._compiled is not None:
            self._compiled.release()

    def backward(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> MinibatchReport:
        """Set the gradients of the minibatch `rows` (B,) of a batch, its weights scaled, and return what it reports."""
        if self._compiled is not None:
            try:
                reported = self._compiled(batch, rows, scale)
            except Exception as error:  # what compiles again may fail, too
                if self.compile != "auto":
                    raise
                self._leave_uncompiled(one_line(error, 200))
                return self.backward(batch, rows, scale)
        elif self._short_backward and self._flat is not None:
            self._flat.gradients.zero_()
            loss, reported = self.loss(select(batch, rows, scale))
            loss.backward()
        else:
            self.zero_grad()
            loss, reported = self.loss(select(batch, rows, scale))
            self.module.manual_backward(loss)
            return reported
        if self._flat is not None and world_size() > 1:
            self._flat.gradients.copy_(mean_over_ranks(self._flat.gradients))
        return reported

    def zero_grad(self) -> None:
        """Release all gradients, also of parameters that are in no optimizer."""
        for parameter in self._trained:
            parameter.grad = None

    def step(self) -> None:
        """Take a step of each optimizer, with the module's hook before it."""
        for optimizer in self.optimizers:
            if self._short_step:
                shortcuts.step(self.module, optimizer)
            else:
                optimizer.step()

    def clip(self, bound: float | None) -> Tensor:
        """Scale the gradients to a global norm of at most `bound`, in place, and return the norm they had.

        Args:
            bound: None only measures.
        """
        if self._flat is None or not self._flat.holds_gradients:
            return nn.utils.clip_grad_norm_(self.module.parameters(), math.inf if bound is None else bound)
        norm = torch.linalg.vector_norm(self._flat.gradients)
        if bound is not None:
            self._flat.gradients.div_(((norm + 1e-6) / bound).clamp_(min=1.0))
        return norm


class Snapshot:
    """Weights, buffers (as the statistics of batch normalisation) and optimizer state as they are now, to be restored.

    Args:
        tensors: Weights and buffers.
        optimizers: Those of the weights.
    """

    def __init__(self, tensors: Iterable[Tensor], optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._states = [
            (optimizer.state, {p: dict(own) for p, own in optimizer.state.items()}) for optimizer in optimizers
        ]
        tensors = [tensor.detach() for tensor in tensors]
        for _, states in self._states:
            for own in states.values():
                tensors += [value for value in own.values() if isinstance(value, Tensor)]
        self._saved = [(tensor, tensor.clone()) for tensor in tensors]

    def restore(self) -> None:
        """Restore the saved values."""
        for tensor, saved in self._saved:
            tensor.copy_(saved)
        for state, saved_state in self._states:
            state.clear()
            state.update(saved_state)
