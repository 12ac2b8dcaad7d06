"""Weights, gradients and optimizer state shared out over the ranks by FSDP2 (`fully_shard`).

Minibatches gather the weights as they need them, block by block. Whatever runs without gradients, in the policy's eval
mode, gathers all of them once, because ranks step their environments and play their episodes at their own pace, and
whoever gathers needs the others.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.support.distributed import average_in_place
from lightning_ppo.support.errors import ConfigError

NAME = "fsdp2"
StrategyRegistry.register(
    NAME,
    ModelParallelStrategy,
    "Fully sharded data parallel (FSDP2), with checkpoints that are whole files",
    override=True,
    save_distributed_checkpoint=False,
)


def is_sharded(trainer: Any) -> bool:
    """Return whether a Trainer shares the weights out over its ranks."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def has_shards(policy: ActorCritic) -> bool:
    """Return whether the weights of a policy are shared out."""
    return isinstance(policy.whole_weights, WholeWeights)


def share_when_configured(module: Any) -> None:
    """Have the policy's weights shared out after the module's `configure_model`, if the Trainer's strategy does so.

    Raises:
        ConfigError: For what does not work with weights that are shared out, or if they are since an earlier fit.
    """
    trainer, policy = module.trainer, module.policy
    if not is_sharded(trainer):
        if has_shards(policy):
            raise ConfigError(
                "trainer.strategy: an earlier fit has shared the weights out; load them from a checkpoint"
            )
        return
    if module.objective.trust_region:
        raise ConfigError(f"objective: trpo needs all weights on each rank; take trainer.strategy=ddp, not {NAME}")
    if module.compile_setting is True:
        raise ConfigError(f"compile: the update is not compiled with trainer.strategy={NAME}; set it to false or auto")
    if trainer.precision == "16-mixed":
        raise ConfigError(f"trainer.precision: 16-mixed does not work with trainer.strategy={NAME}; use bf16-mixed")
    if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
        raise ConfigError(f"WeightAveraging: averages whole weights; leave it out with trainer.strategy={NAME}")
    configure = type(module).configure_model

    def configure_model() -> None:
        configure(module)
        shard(policy)

    # an attribute of the instance: overriding the method would make Lightning warn of sharding in every fit
    module.configure_model = configure_model


def shard(policy: ActorCritic) -> None:
    """Share the weights of a policy out over all ranks.

    The entries of each `nn.ModuleList` of the network, as the layers of a transformer, are gathered one at a time,
    everything else together. If `fully_shard` was applied to modules before, it is these instead of the entries.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    meshes = [getattr(parameter, "device_mesh", None) for parameter in policy.parameters()]
    if any("tensor_parallel" in (mesh.mesh_dim_names or ()) for mesh in meshes if mesh is not None):
        raise ConfigError("configure_model: there is no tensor parallelism, as each rank has data of its own")
    if isinstance(policy, FSDPModule):
        return
    parts = list(policy.network.modules())
    if not any(isinstance(part, FSDPModule) for part in parts):
        blocks = [block for part in parts if isinstance(part, nn.ModuleList) for block in part]
        for block in reversed(blocks):  # from the inside out
            if any(True for _ in block.parameters()):
                fully_shard(block)
    fully_shard(policy)
    register_fsdp_forward_method(policy, "through")
    policy.whole_weights = WholeWeights(policy)


class WholeWeights:
    """A context in which each rank has all weights; all ranks enter it, and one within another changes nothing.

    Args:
        policy: With weights that are shared out.
    """

    def __init__(self, policy: ActorCritic) -> None:
        self.policy = policy
        self._depth = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Gather the weights; share them out again at the end."""
        from torch.distributed.fsdp import FSDPModule

        self._depth += 1
        parts = [part for part in self.policy.modules() if isinstance(part, FSDPModule)] if self._depth == 1 else []
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
        if parts:
            self.policy.through(lambda: None)  # the first pass makes the policy the root of its blocks
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            self._depth -= 1
            for part in parts:
                part.reshard()
                if part is not self.policy:
                    part.set_reshard_after_forward(True, recurse=False)


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients, over all ranks where they are shared out."""
    norms = [_whole_norm(part) for part in _apart(parameters) if part] or [torch.zeros(())]
    return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]


def clip_gradients(parameters: Sequence[Tensor], bound: float, norm: Tensor) -> None:
    """Scale gradients of this norm to one of at most `bound`, in place."""
    for part in _apart(parameters):
        nn.utils.clip_grads_with_norm_(part, bound, norm)


def average_replicated(parameters: Sequence[Tensor]) -> None:
    """Replace gradients of parameters that every rank has, as those of loss terms, by their means over all ranks."""
    for parameter in _apart(parameters)[1]:
        assert parameter.grad is not None
        average_in_place(parameter.grad)


def _apart(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return parameters with gradients that are shared out, and those that every rank has."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    apart = [parameter for parameter in found if hasattr(parameter, "full_tensor")]
    return apart, [parameter for parameter in found if not hasattr(parameter, "full_tensor")]


def _whole_norm(parameters: Sequence[Tensor]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: Any = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
