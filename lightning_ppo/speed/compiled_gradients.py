"""Forward and backward of a loss as one compiled graph."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from lightning_ppo.speed.direct_calls import DirectCalls
from lightning_ppo.speed.flat import FlatParameters
from lightning_ppo.speed.fused_linear import cpu_compiler, cxx_compiler
from lightning_ppo.speed.graphs import Recorded, autocast_cache, can_record
from lightning_ppo.support.errors import one_line

Loss = Callable[..., tuple[Tensor, Any]]
"""Returns a loss and what is reported besides."""


class _LossModule(nn.Module):
    """A loss as the `forward` of a module that holds its parameters, which is what `functional_call` takes."""

    def __init__(self, policy: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.policy = policy
        self.loss = loss

    def forward(self, *arguments: Any) -> tuple[Tensor, Any]:
        return self.loss(*arguments)


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
    """Forward and backward of a loss as one compiled graph, replayed as one CUDA graph on a GPU.

    Attributes:
        alike: Whether the next call is like the last in all but the values of tensors. It is after a call; set it to
            False where something else may have changed, and what depends on it is compiled again.

    Args:
        policy: A module that holds the trained parameters.
        flat: These parameters; they get the gradients.
        loss: Computes from `policy` and the arguments of a call a loss and what is reported besides.
        accumulate: Calls add to the gradients, from `begin` on, instead of setting them.
        pure: Whether the loss does nothing but compute, so that calls may go past the tracer (see `direct_calls`).
    """

    def __init__(
        self, policy: nn.Module, flat: FlatParameters, loss: Loss, accumulate: bool = False, pure: bool = False
    ) -> None:
        self.alike = False
        self._accumulate = accumulate
        self._flat = flat
        module = _LossModule(policy, loss)
        places = _places(module)
        self._parameters = {name: module.get_parameter(name).detach() for name in dict.fromkeys(places.values())}

        def gradients(parameters: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, Any]:
            def of_parameters(values: dict[str, Tensor]) -> tuple[Tensor, Any]:
                everywhere = {place: values[name] for place, name in places.items()}
                return functional_call(module, everywhere, arguments, tie_weights=False)

            grads, (_, reported) = grad_and_value(of_parameters, has_aux=True)(parameters)
            return flat.join([grads[name] for name in parameters]), reported

        # the compiler counts recompilations per code object, so each instance, with its own sizes, brings its own
        gradients.__code__ = gradients.__code__.replace()
        on_cpu = flat.gradients.device.type == "cpu"
        self._direct = DirectCalls(cpu_compiler) if on_cpu and pure else None
        backend = self._direct or (cpu_compiler if on_cpu else "inductor")
        self._gradients: Any = torch.compile(gradients, fullgraph=True, dynamic=False, backend=backend)
        self._recorded: Recorded | None = None
        if can_record(flat.gradients.device):
            self._recorded = Recorded(self._set_gradients, lambda: (*policy.parameters(), *policy.buffers()))

    def _set_gradients(self, *arguments: Any) -> Any:
        if self.alike and self._direct is not None and (results := self._direct.run(arguments)) is not None:
            found, reported = results
            self._take(found)
            return reported
        # checking that a call is like the last takes a tenth of the time of a small minibatch; what is compiled depends
        # on autocast's cache too, which is off while recording
        with (
            autocast_cache(False) if self._recorded else nullcontext(),
            torch.compiler.set_stance("default", skip_guard_eval_unsafe=True) if self.alike else nullcontext(),
        ):
            found, reported = self._gradients(self._parameters, *arguments)
        self.alike = True
        if self._direct is not None:
            self._direct.learn(arguments, (found, reported))
        self._take(found)
        return reported

    def _take(self, found: Tensor) -> None:
        if self._accumulate:
            self._flat.gradients.add_(found)
        else:
            self._flat.gradients.copy_(found)

    def compile(self, *example: Any) -> str | None:
        """Compile for arguments of the shapes of an example; return why that failed, if it did.

        The random state stays as it is: a resumed run compiles again, and has to draw the same numbers.
        """
        from torch._dynamo.exc import TorchDynamoException

        device = self._flat.gradients.device
        if missing := missing_compiler(device):
            return missing
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                warnings.catch_warnings(action="ignore", category=DeprecationWarning),  # of the compiler's own doing
            ):
                for _ in range(1 if self._recorded is None else 2):  # the second call is recorded
                    self(*example)
        except TorchDynamoException as error:
            return f"the loss cannot be traced ({one_line(error, 200)})"
        except RuntimeError as error:
            if self._recorded is None:
                raise
            return f"the update cannot be recorded as a CUDA graph ({one_line(error, 200)})"
        return None

    def begin(self) -> None:
        """Forget the gradients of the minibatch before."""
        if self._accumulate:
            self._flat.gradients.zero_()

    def release(self) -> None:
        """Let go of the batch, which a recording would keep beside its own copy while the next rollout is collected."""
        if self._recorded is not None:
            self._recorded.release()
        if self._direct is not None:
            self._direct.forget()

    def __call__(self, *arguments: Any) -> Any:
        """Set the gradients of the loss and return what it reports."""
        if self._recorded is None:
            return self._set_gradients(*arguments)
        if self.alike:
            return self._recorded(*arguments)
        # a replay would not notice what has changed; a call does, and compiles again
        compiled = _graphs_compiled()
        reported = self._set_gradients(*arguments)
        if _graphs_compiled() == compiled:
            self._recorded.refresh()
        else:
            self._recorded.forget()
        return reported


def missing_compiler(device: torch.device) -> str | None:
    """Return which compiler is missing for a device, and how to get it; None if none is."""
    if device.type == "cpu":
        return None if cxx_compiler() else "no C++ compiler was found, install g++"
    from torch.utils._triton import has_triton

    return None if has_triton() else "no Triton was found, install triton"


def _graphs_compiled() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
