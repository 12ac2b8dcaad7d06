"""Parameters and their gradients in one buffer each, and Adam over the buffers.

Much of an eager update of a small network is the price of a call for each of its dozen parameters, to zero, clip,
average and apply its gradient. In one buffer each of these is one call for all.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

ALIGNMENT = 16
"""Each parameter starts at a multiple of this many numbers, 64 bytes in float32, which kernels on vectors like."""


class FlatParameters:
    """Parameters of which values and gradients are views of one buffer each.

    Attributes:
        parameters: The parameters.
        values: (P,), the buffer of their values, with zeros between them.
        gradients: (P,), the buffer of their gradients.

    Args:
        parameters: At least one, all of one dtype and on one device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        # from the slowest to the fastest dimension in memory, so that weights may be channels_last
        self._orders = [sorted(range(p.dim()), key=p.stride().__getitem__, reverse=True) for p in self.parameters]
        self._padding = [-p.numel() % ALIGNMENT for p in self.parameters]
        like = self.parameters[0].detach()
        size = sum(p.numel() + padding for p, padding in zip(self.parameters, self._padding, strict=True))
        self.values, self.gradients = like.new_zeros(size), like.new_zeros(size)
        self._values, self._gradients = self.split(self.values), self.split(self.gradients)

    @staticmethod
    def suits(parameters: Sequence[Tensor]) -> bool:
        """Return whether these parameters can lie in one buffer."""
        return len({(p.dtype, p.device, p.layout) for p in parameters}) == 1

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return the parts of a buffer (P,) in the shapes of the parameters, and as they lie in memory."""
        views, start = [], 0
        for p, order, padding in zip(self.parameters, self._orders, self._padding, strict=True):
            piece = flat[start : start + p.numel()].view([p.shape[d] for d in order])
            views.append(piece.permute([order.index(d) for d in range(p.dim())]))
            start += p.numel() + padding
        return views

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors in the shapes of the parameters as one buffer (P,), the inverse of `split`."""
        pieces = zip(tensors, self._orders, self._padding, strict=True)
        return torch.cat([pad(x.permute(order).reshape(-1), (0, padding)) for x, order, padding in pieces])

    @torch.no_grad()
    def attach(self) -> None:
        """Make the parameters and their gradients views of the buffers; values stay, gradients are the buffer's."""
        for parameter, value, gradient in zip(self.parameters, self._values, self._gradients, strict=True):
            if parameter.data_ptr() != value.data_ptr():
                value.copy_(parameter)
                parameter.data = value
            parameter.grad = gradient

    @property
    def holds_gradients(self) -> bool:
        """Whether all gradients are still those in the buffer."""
        return all(p.grad is gradient for p, gradient in zip(self.parameters, self._gradients, strict=True))


class FlatAdam(torch.optim.Adam):
    """Fused Adam in one call for all parameters, where one `FlatParameters` holds them.

    Its state has the form of `torch.optim.Adam`: checkpoints of one are those of the other.

    Args:
        params: As of `torch.optim.Adam`.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
    """

    found_inf: Tensor | None = None
    """On the device, not 0 where steps are to be left out; torch's own fused Adam reads it, too."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, lr, betas, eps, fused=True)
        self._forget_layout()
        self.register_state_dict_pre_hook(_count_steps)

    def _forget_layout(self) -> None:
        # gradients are clipped before the step, so it must not be the step that unscales them
        self._step_supports_amp_scaling = False
        self._flat: FlatParameters | None = None
        self._moments: list[Tensor] = []
        self._views: list[list[Tensor]] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take state from a file or a copy's original; `lay_out` brings the buffers back."""
        super().__setstate__(state)
        self._forget_layout()
        if _count_steps not in self._optimizer_state_dict_pre_hooks.values():
            self.register_state_dict_pre_hook(_count_steps)

    @torch.no_grad()
    def lay_out(self, flat: FlatParameters) -> None:
        """Take one call for all parameters, those of `flat`, from now on; call it again when state has been loaded.

        Nothing changes where there are other parameters, several groups, or parameters of another age.
        """
        if flat is self._flat and self._laid_out(flat):
            return
        self._count()
        if flat is not self._flat:
            self._moments = [torch.zeros_like(flat.values), torch.zeros_like(flat.values)]
            self._views = [flat.split(moment) for moment in self._moments]
        self._flat = None
        if len(self.param_groups) != 1:
            return
        trained = [p for p in self.param_groups[0]["params"] if p.requires_grad]
        if len(trained) != len(flat.parameters) or any(
            p is not q for p, q in zip(trained, flat.parameters, strict=True)
        ):
            return
        ages = {float(self.state[p]["step"]) if p in self.state else 0.0 for p in trained}
        if len(ages) > 1:
            return
        for name, views in zip(("exp_avg", "exp_avg_sq"), self._views, strict=True):
            for parameter, view in zip(trained, views, strict=True):
                state = self.state[parameter]
                # float32 whatever the default: the kernel for GPUs reads it as that
                state.setdefault("step", torch.zeros((), dtype=torch.float32, device=view.device))
                if name not in state:
                    view.zero_()
                elif state[name].data_ptr() != view.data_ptr():
                    view.copy_(state[name])
                state[name] = view
        self._flat = flat

    def _laid_out(self, flat: FlatParameters) -> bool:
        """Return whether all state is still what `lay_out` made of it."""
        ours = zip(flat.parameters, *self._views, strict=True)
        found = ((self.state.get(p, {}), first, second) for p, first, second in ours)
        same = all(s.get("exp_avg") is first and s.get("exp_avg_sq") is second for s, first, second in found)
        return same and len(self.param_groups) == 1

    @torch.no_grad()
    def _count(self) -> None:
        """Give all parameters the number of steps that only the first has counted."""
        if self._flat is not None and all(p in self.state for p in self._flat.parameters):
            first, *others = (self.state[p]["step"] for p in self._flat.parameters)
            for other in others:
                other.copy_(first)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what `closure` does."""
        flat = self._flat
        if flat is None:
            return self._step_one_by_one(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if flat.holds_gradients:
            self._step_flat(flat)
        else:
            self._count()
            self._step_one_by_one()
            if any(p.grad is None for p in flat.parameters):
                self._flat = None  # some are a step behind from now on
        return loss

    def _step_one_by_one(self, closure: Callable[[], Any] | None = None) -> Any:
        step: Any = torch.optim.Adam.step
        # where there has been an Adam, torch has wrapped its step; the hooks are called around the step of this class
        return (step.__wrapped__ if getattr(step, "hooked", False) else step)(self, closure)

    @torch.no_grad()
    def bare_step(self) -> None:
        """Take one step; without what torch wraps around every step, where nothing of it is asked for.

        Its mark for the profiler, the search for hooks and the counting of the schedulers take three times as long as
        the arithmetic of a small network.
        """
        flat = self._flat
        hooked = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        if flat is None or not flat.holds_gradients or hooked or torch.autograd._profiler_enabled():
            self.step()
            return
        self._opt_called = True  # which schedulers look for
        self._step_flat(flat)

    def _step_flat(self, flat: FlatParameters) -> None:
        group, steps = self.param_groups[0], self.state[flat.parameters[0]]["step"]
        steps += 1
        if self.found_inf is not None:
            steps -= self.found_inf
        # what torch.optim.adam.adam comes to; its way there takes longer than the arithmetic
        torch._fused_adam_(
            [flat.values],
            [flat.gradients],
            self._moments[:1],
            self._moments[1:],
            [],
            [steps],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )


def _count_steps(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, FlatAdam):
        optimizer._count()
