"""How gradients are made and applied: eager and compiled minibatches, clipping, steps."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_ppo.rollout.shapes import Minibatch, select
from lightning_ppo.speed import shortcuts, switch
from lightning_ppo.speed.compiled_gradients import CompiledGradients
from lightning_ppo.speed.flat import FlatAdam, FlatParameters
from lightning_ppo.speed.internals import listener_of
from lightning_ppo.support.distributed import average_in_place, max_over_ranks
from lightning_ppo.support.errors import ConfigError, one_line
from lightning_ppo.update.compiling import own_code
from lightning_ppo.update.reports import MinibatchReport, joined
from lightning_ppo.update.sharding import average_replicated, clip_gradients, gradient_norm

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
        micro_batch_size: Rows of one pass, whose gradients add up to those of the minibatch; None is all of them.
        sharded: Ranks share the parameters out (see `sharding`).
    """

    def __init__(
        self,
        module: pl.LightningModule,
        loss: Loss,
        optimizers: Sequence[LightningOptimizer],
        compile: bool | str,
        micro_batch_size: int | None = None,
        sharded: bool = False,
    ) -> None:
        self.module = module
        self.loss = loss
        self.optimizers = optimizers
        self.compile = compile
        self.micro_batch_size = micro_batch_size
        self.sharded = sharded
        self.latest_compile_seconds = 0.0
        hooks = "on_before_backward", "on_after_backward", "backward"
        self._short_backward = switch.is_on() and shortcuts.nobody_listens(module, *hooks)
        self._short_step = switch.is_on() and shortcuts.nobody_listens(module, "on_before_optimizer_step")
        self._scaled = getattr(module.trainer.precision_plugin, "scaler", None) is not None
        self._norm: Tensor | None = None
        self._refused = self._stepping = False
        self._found_inf: Tensor | None = None
        self._trained: list[nn.Parameter] = []
        self._flat: FlatParameters | None = None
        self._compiled: CompiledGradients | None = None

    def prepare(self, batch: Minibatch, minibatch_size: int) -> None:
        """Get ready for an iteration over the rows of a rollout, in minibatches of B.

        Raises:
            ConfigError: If no parameter can be trained.
        """
        self.latest_compile_seconds = 0.0
        self._refused = False
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
        self._found_inf = self._told_on_device()

    def _told_on_device(self) -> Tensor | None:
        """Return what tells the optimizers not to step, None where the host looks at each norm.

        On a CPU looking is free. Elsewhere it is to wait, so that the fused Adam reads on the device what it must not
        apply; other optimizers can be told only by not calling them.
        """
        own = [optimizer.optimizer for optimizer in self.optimizers]
        on_device = self.module.device.type != "cpu" and self._short_step and not self._scaled
        found = torch.zeros((), device=self.module.device) if on_device else None
        fused = [optimizer for optimizer in own if isinstance(optimizer, FlatAdam)]
        if len(fused) < len(own):
            found = None
        for optimizer in fused:
            optimizer.found_inf = found
        return found

    def _compile(self, batch: Minibatch, minibatch_size: int) -> None:
        """Compile if requested; continue uncompiled, with a line, if a rank cannot."""
        if not self.compile or self._flat is None:
            return
        started = time.perf_counter()
        self._flat.attach()
        loss, device = self.loss, batch.weights.device
        size = self.micro_batch_size or minibatch_size
        self._compiled = CompiledGradients(
            self.module,
            self._flat,
            lambda batch, rows, scale: _checked(loss, batch, rows, scale),
            accumulate=size < minibatch_size,
            pure=self._only_computes(),
        )
        rows, scale = torch.arange(size, device=device), torch.ones((), device=device)
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
        """Release the batch at the end of an iteration, and gradients that would lie beside gathered weights."""
        if self._compiled is not None:
            self._compiled.release()
        if self.sharded:
            self.zero_grad()

    def backward(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> MinibatchReport:
        """Set the gradients of the minibatch `rows` (B,) of a batch, its weights scaled, and return what it reports."""
        pieces = [rows] if self.micro_batch_size is None else rows.split(self.micro_batch_size)
        if self._compiled is not None:
            try:
                reports = self._compiled_passes(self._compiled, batch, pieces, scale)
            except Exception as error:  # what compiles again may fail, too
                if self.compile != "auto":
                    raise
                self._leave_uncompiled(one_line(error, 200))
                return self.backward(batch, rows, scale)
        elif self._short_backward and self._flat is not None:
            reports = self._short_passes(self._flat, batch, pieces, scale)
        else:
            return joined(self._passes(batch, pieces, scale))
        if self._flat is not None:
            average_in_place(self._flat.gradients)
        return joined(reports)

    def _compiled_passes(
        self, compiled: CompiledGradients, batch: Minibatch, pieces: Sequence[Tensor], scale: Tensor
    ) -> list[MinibatchReport]:
        compiled.begin()
        return [compiled(batch, piece, scale) for piece in pieces]

    def _short_passes(
        self, flat: FlatParameters, batch: Minibatch, pieces: Sequence[Tensor], scale: Tensor
    ) -> list[MinibatchReport]:
        flat.gradients.zero_()
        reports = []
        for piece in pieces:
            loss, reported = self.loss(select(batch, piece, scale))
            loss.backward()
            flat.gradients[0].add_(loss.detach(), alpha=0.0)  # NaN if the loss is not finite, as by `one`
            reports.append(reported)
        return reports

    def _passes(self, batch: Minibatch, pieces: Sequence[Tensor], scale: Tensor) -> list[MinibatchReport]:
        self.zero_grad()
        policy: Any = self.module.policy
        reports = []
        for number, piece in enumerate(pieces, 1):
            loss, reported = policy.through(partial(_checked, self.loss, batch, piece, scale))
            with nullcontext() if number == len(pieces) else self._unaveraged():
                self.module.manual_backward(loss)
            reports.append(reported)
        if self.sharded:
            average_replicated(self._trained)
        return reports

    def _unaveraged(self) -> AbstractContextManager[None]:
        """Return a context in which DDP keeps gradients as they are: the last pass of a minibatch averages them all."""
        model: Any = self.module.trainer.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def zero_grad(self) -> None:
        """Release all gradients, also of parameters that are in no optimizer."""
        for parameter in self._trained:
            parameter.grad = None

    def step(self) -> Tensor:
        """Take a step of each optimizer, with the module's hook before it, and return the norm of the gradients.

        From the first norm of an iteration on that is not finite, no step is taken. What is not finite on one rank has
        made the gradients of all of them so.
        """
        self._norm = None
        if not self._short_step and not self._scaled:
            self._may_step()  # Lightning calls the hook within the first step
            self._stepping = True
        for optimizer in self.optimizers:
            if self._refused:
                break
            if self._short_step:
                shortcuts.step(self.module, optimizer, self._may_step)
            else:
                with suppress(_StepRefusedError):
                    optimizer.step()
        self._stepping = False
        return self._measured()

    def _measured(self) -> Tensor:
        """Return the norm of the gradients, which the module's hook has measured unless it was overridden."""
        if self._norm is None:
            self._judge(gradient_norm(self._trained))
            assert self._norm is not None
        return self._norm

    def _may_step(self) -> bool:
        self._measured()
        return not self._refused

    def _judge(self, norm: Tensor) -> None:
        """Keep the norm of all gradients, and refuse steps from now on if it is not finite."""
        self._norm = norm
        if self._found_inf is not None:
            self._found_inf.copy_(torch.maximum(self._found_inf, (~norm.isfinite()).float()))
        elif not self._scaled:  # else the scaler skips the step
            self._refused = self._refused or not math.isfinite(norm)
            if self._refused and self._stepping:
                raise _StepRefusedError

    def clip(self, bound: float | None) -> None:
        """Scale the gradients to a global norm of at most `bound`, in place; None only measures."""
        if self._flat is None or not self._flat.holds_gradients:
            self._judge(gradient_norm(self._trained))
            if bound is not None:
                clip_gradients(self._trained, bound, self._measured())
            return
        norm = torch.linalg.vector_norm(self._flat.gradients)
        self._judge(norm)
        if bound is not None:
            self._flat.gradients.div_(((norm + 1e-6) / bound).clamp_(min=1.0))


def one(loss: Tensor) -> Tensor:
    """Return 1, or NaN if a loss is not finite: multiplied by it, gradients tell every rank of what has none."""
    return loss.detach() * 0.0 + 1.0


def _checked(loss: Loss, batch: Minibatch, rows: Tensor, scale: Tensor) -> tuple[Tensor, MinibatchReport]:
    found, reported = loss(select(batch, rows, scale))
    return found * one(found), reported


class _StepRefusedError(Exception):
    """Leaves a step out within which Lightning calls the hook that finds gradients not finite."""


class Snapshot:
    """Buffers (as the statistics of batch normalisation) as they are now, to be restored.

    Weights and optimizers need none: steps that are not finite are never taken.

    Args:
        buffers: The buffers.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        self._saved = [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self) -> None:
        """Restore the saved values."""
        for buffer, saved in self._saved:
            buffer.copy_(saved)
