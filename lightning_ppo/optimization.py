"""How gradients are made and applied: eager and compiled minibatches, clipping, steps."""

import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.plugins.precision import DoublePrecision, MixedPrecision, Precision
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from lightning_ppo.distributed import max_over_ranks, mean_over_ranks, world_size
from lightning_ppo.flat import FlatAdam, FlatParameters
from lightning_ppo.fused_linear import cpu_compiler
from lightning_ppo.graphs import Recorded, autocast_cache, can_record
from lightning_ppo.iteration import MinibatchReport
from lightning_ppo.rollout import Minibatch, select

Loss = Callable[[Minibatch], tuple[Tensor, MinibatchReport]]


class _LossModule(nn.Module):
    """A loss as the `forward` of a module that holds its parameters, which is what `functional_call` takes."""

    def __init__(self, policy: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.policy = policy
        self.loss = loss

    def forward(self, minibatch: Minibatch) -> tuple[Tensor, MinibatchReport]:
        return self.loss(minibatch)


def _places(module: nn.Module) -> dict[str, str]:
    """Return every place where a module keeps a trained parameter, and the first place of that parameter.

    `functional_call` finds the places of shared parameters itself, but not while it is compiled.
    """
    places: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.requires_grad:
                place = f"{path}.{name}" if path else name
                places[place] = first.setdefault(id(parameter), place)
    return places


class CompiledGradients:
    """Forward and backward of the minibatch loss as one compiled graph, replayed as one CUDA graph on a GPU.

    Attributes:
        alike: Whether the next call is like the last in all but the values of tensors. It is after a call; set it to
            False where something else may have changed, and what depends on it is compiled again.

    Args:
        policy: A module that holds the trained parameters.
        flat: These parameters; they get the gradients.
        loss: Computes loss and statistics of a minibatch from `policy`.
    """

    def __init__(self, policy: nn.Module, flat: FlatParameters, loss: Loss) -> None:
        self.alike = False
        self._flat = flat
        module = _LossModule(policy, loss)
        places = _places(module)
        self._parameters = {name: module.get_parameter(name).detach() for name in dict.fromkeys(places.values())}

        def gradients(
            parameters: dict[str, Tensor], batch: Minibatch, rows: Tensor, scale: Tensor
        ) -> tuple[Tensor, MinibatchReport]:
            minibatch = select(batch, rows, scale)

            def of_parameters(values: dict[str, Tensor]) -> tuple[Tensor, MinibatchReport]:
                everywhere = {place: values[name] for place, name in places.items()}
                return functional_call(module, everywhere, (minibatch,), tie_weights=False)

            grads, (_, reported) = grad_and_value(of_parameters, has_aux=True)(parameters)
            return flat.join([grads[name] for name in parameters]), reported

        # the compiler counts recompilations per code object, so each instance, with its own sizes, brings its own
        gradients.__code__ = gradients.__code__.replace()
        backend = cpu_compiler if flat.gradients.device.type == "cpu" else "inductor"
        self._gradients: Any = torch.compile(gradients, fullgraph=True, dynamic=False, backend=backend)
        self._recorded: Recorded | None = None
        if can_record(flat.gradients.device):
            self._recorded = Recorded(self._set_gradients, lambda: (*policy.parameters(), *policy.buffers()))

    def _set_gradients(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> MinibatchReport:
        # checking that a call is like the last takes a tenth of the time of a small minibatch; what is compiled depends
        # on autocast's cache too, which is off while recording
        with (
            autocast_cache(False) if self._recorded else nullcontext(),
            torch.compiler.set_stance("default", skip_guard_eval_unsafe=True) if self.alike else nullcontext(),
        ):
            found, reported = self._gradients(self._parameters, batch, rows, scale)
        self.alike = True
        self._flat.gradients.copy_(found)
        return reported

    def compile(self, batch: Minibatch, minibatch_size: int) -> str | None:
        """Compile for minibatches of one size; return why that failed, if it did.

        The random state stays as it is: a resumed run compiles again, and has to draw the same numbers.

        Args:
            batch: The rows of a rollout.
            minibatch_size: B, of every minibatch to come.
        """
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        device = batch.weights.device
        example = batch, torch.arange(minibatch_size, device=device), torch.ones((), device=device)
        try:
            if device.type == "cpu":
                get_cpp_compiler()
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                warnings.catch_warnings(action="ignore", category=DeprecationWarning),  # of the compiler's own doing
            ):
                for _ in range(1 if self._recorded is None else 2):  # the second call is recorded
                    self(*example)
        except InvalidCxxCompiler:
            return "no C++ compiler was found, install g++"
        except TorchDynamoException as error:
            return f"the loss cannot be traced ({textwrap.shorten(str(error), 200)})"
        except RuntimeError as error:
            if self._recorded is None:
                raise
            return f"the update cannot be recorded as a CUDA graph ({textwrap.shorten(str(error), 200)})"
        return None

    def release(self) -> None:
        """Let go of the batch, which a recording would keep beside its own copy while the next rollout is collected."""
        if self._recorded is not None:
            self._recorded.release()

    def __call__(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> MinibatchReport:
        """Set the gradients of the minibatch `rows` (B,) of a flat batch and return what it reports."""
        if self._recorded is None:
            return self._set_gradients(batch, rows, scale)
        if self.alike:
            return self._recorded(batch, rows, scale)
        # a replay would not notice what has changed; a call does, and compiles again
        compiled = _graphs_compiled()
        reported = self._set_gradients(batch, rows, scale)
        if _graphs_compiled() == compiled:
            self._recorded.refresh()
        else:
            self._recorded.forget()
        return reported


def _graphs_compiled() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


class MinibatchUpdate:
    """Makes gradients of minibatches and applies them, in the shortest way that a fit allows.

    Lightning's hooks around each of the hundreds of backward passes and steps of an iteration cost a fifth of an eager
    update of a small network, also where nobody listens to them. They are left out where module and callbacks override
    none of them, the strategy is one device or DDP, whose averaging is done here, and gradients are not scaled.
    Parameters and gradients then lie in one buffer each (see `flat`), as they do where the update is compiled.

    Attributes:
        latest_compile_seconds: Time that compiling took in the latest `prepare`.

    Args:
        module: Its parameters are updated.
        loss: Computes loss and statistics of a minibatch.
        optimizers: Over disjoint parameters.
        compile: Compile forward and backward of the loss into one graph.
    """

    def __init__(
        self, module: pl.LightningModule, loss: Loss, optimizers: Sequence[LightningOptimizer], compile: bool
    ) -> None:
        self.module = module
        self.loss = loss
        self.optimizers = optimizers
        self.compile = compile
        self.latest_compile_seconds = 0.0
        self._plain_backward = _is_plain(module, "on_before_backward", "on_after_backward", "backward")
        self._plain_step = _is_plain(module, "on_before_optimizer_step")
        self._trained: list[nn.Parameter] = []
        self._flat: FlatParameters | None = None
        self._compiled: CompiledGradients | None = None

    def prepare(self, batch: Minibatch, minibatch_size: int) -> None:
        """Get ready for an iteration over the rows of a rollout, in minibatches of B."""
        self.latest_compile_seconds = 0.0
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if [*map(id, trained)] != [*map(id, self._trained)]:  # the first time, or some were frozen or freed
            self._trained, self._flat, self._compiled = trained, None, None
            if FlatParameters.suits(trained) and (self._plain_backward or self.compile):
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
        """Compile if that was asked for; leave it, with a warning, if a rank cannot."""
        if not self.compile or self._flat is None:
            return
        started = time.perf_counter()
        self._flat.attach()
        self._compiled = CompiledGradients(self.module, self._flat, self.loss)
        failure = self._compiled.compile(batch, minibatch_size)
        self.latest_compile_seconds = time.perf_counter() - started
        failed = torch.tensor([failure is not None], dtype=torch.float32, device=batch.weights.device)
        if max_over_ranks(failed):
            self._compiled, self.compile = None, False
            reason = failure or "another rank cannot compile"
            rank_zero_warn(f"compile: {reason}; training goes on uncompiled")

    def release(self) -> None:
        """Let go of the batch at the end of an iteration."""
        if self._compiled is not None:
            self._compiled.release()

    def backward(self, batch: Minibatch, rows: Tensor, scale: Tensor) -> MinibatchReport:
        """Set the gradients of the minibatch `rows` (B,) of a batch, its weights scaled, and return what it reports."""
        if self._compiled is not None:
            reported = self._compiled(batch, rows, scale)
        elif self._plain_backward and self._flat is not None:
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
        """Let go of all gradients, also of parameters that are in no optimizer."""
        for parameter in self._trained:
            parameter.grad = None

    def step(self) -> None:
        """Take a step of each optimizer, with the module's hook before it."""
        for optimizer in self.optimizers:
            if self._plain_step:
                self._bare_step(optimizer)
            else:
                optimizer.step()

    def _bare_step(self, wrapper: LightningOptimizer) -> None:
        # as LightningOptimizer.step does; the calls around the step advance Lightning's `global_step`
        optimizer = wrapper.optimizer
        wrapper._on_before_step()
        self.module.on_before_optimizer_step(optimizer)
        if isinstance(optimizer, FlatAdam):
            optimizer.bare_step()
        else:
            optimizer.step()
        wrapper._on_after_step()

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


def _is_plain(module: pl.LightningModule, *hooks: str) -> bool:
    """Return whether Lightning would add nothing but calls of hooks that nobody overrides.

    What the module does in `on_before_optimizer_step` is called in any case.
    """
    trainer: Any = module.trainer
    precision = trainer.precision_plugin
    return (
        type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
        and type(precision) in (Precision, DoublePrecision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and not any(overrides(callback, pl.Callback, hook) for hook in hooks for callback in trainer.callbacks)
        and not any(overrides(module, pl.LightningModule, hook) for hook in hooks if hook != "on_before_optimizer_step")
    )


def overrides(instance: Any, base: type, method: str) -> bool:
    """Return whether an instance has another method of a name than its base class."""
    inherited = getattr(base, method, None)
    return inherited is not None and getattr(getattr(instance, method), "__func__", None) is not inherited


class Snapshot:
    """Weights, buffers (as the statistics of batch normalisation) and optimizer state as they are now, to be put back.

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
        """Put the saved values back."""
        for tensor, saved in self._saved:
            tensor.copy_(saved)
        for state, saved_state in self._states:
            state.clear()
            state.update(saved_state)
