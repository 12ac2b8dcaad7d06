"""Settings of the networks of actor and critic."""

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_ppo.settings.class_path import Registry, as_path
from lightning_ppo.support.errors import require

ACTIVATIONS = ("tanh", "relu", "elu", "silu", "gelu")

_HEADS = "lightning_ppo.policy.distributions"
DISTRIBUTIONS = Registry(
    "policy.distribution",
    f"{_HEADS}.ActionHead",
    {
        "gaussian": f"{_HEADS}.GaussianHead",
        "state_gaussian": f"{_HEADS}.StateGaussianHead",
        "tanh_gaussian": f"{_HEADS}.TanhGaussianHead",
        "beta": f"{_HEADS}.BetaHead",
        "gsde": f"{_HEADS}.StateDependentExplorationHead",
    },
)
_RECURRENT = "lightning_ppo.policy.recurrence.RecurrentCore"
_TRANSFORMER = "lightning_ppo.policy.transformer.TransformerCore"
CORES = Registry("policy.core", "torch.nn.Module", {"lstm": _RECURRENT, "gru": _RECURRENT, "transformer": _TRANSFORMER})
ENCODERS = Registry("policy.encoder", "torch.nn.Module", {"impala": "lightning_ppo.policy.images.ImpalaCNN"})
NETWORKS = Registry("policy.network", "torch.nn.Module", {})


@dataclass
class PolicyConfig:
    """The networks of actor and critic."""

    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])
    """Units of each hidden layer."""
    activation: str = "tanh"
    """`tanh`, `relu`, `elu`, `silu` or `gelu`."""
    layer_norm: bool = False
    """Normalise what each hidden layer computes, before the activation (LayerNorm)."""
    shared_trunk: bool = False
    """One trunk with two heads instead of two networks."""
    dropout: float = 0.0
    """Share of the hidden units that each pass of an update drops at random, in [0, 1); acting uses all units."""
    distribution: Any = "gaussian"
    """Of Box actions: `gaussian` (free standard deviation), `state_gaussian`, `tanh_gaussian`, `beta`, `gsde`, or a
    class path of your own, which may handle other actions."""
    log_std_init: float = -0.5
    """Initial log standard deviation of Gaussian actions, in units of the half action range."""
    log_std_bounds: list[float] | None = None
    """Least and largest log standard deviation of Gaussian actions, in the same units, such as [-3.0, 0.0]; null sets
    none, and [-20, 2] for `state_gaussian`."""
    core: Any = None
    """Memory after the hidden layers: null, `lstm`, `gru`, `transformer`, or a class path of your own."""
    core_size: int = 64
    """Hidden units of an LSTM or GRU, or width of a transformer."""
    core_layers: int = 1
    """Layers of a transformer."""
    core_heads: int = 4
    """Heads of a transformer's attention, a divisor of `core_size`."""
    core_memory: int = 32
    """Past steps that each layer of a transformer sees."""
    encoder: Any = None
    """The network from observations to features: null (images through the Nature CNN), `impala` (images through the
    residual network of IMPALA), or a class path of your own."""
    network: Any = None
    """Class path of a whole actor-critic instead of the built-in one."""
    critic_observation_keys: list[str] | None = None
    """Entries of a Dict observation that only the critic sees."""

    def __post_init__(self) -> None:
        for name in ("distribution", "core", "encoder", "network"):
            setattr(self, name, as_path(getattr(self, name)))
        require(
            self.activation in ACTIVATIONS,
            f"policy.activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}",
        )
        require(0.0 <= self.dropout < 1.0, f"policy.dropout: must lie in [0, 1), got {self.dropout:g}")
        for registry, entry in ((DISTRIBUTIONS, self.distribution), (CORES, self.core), (ENCODERS, self.encoder)):
            registry.check(entry)
        for name in ("core_size", "core_layers", "core_heads", "core_memory"):
            require(getattr(self, name) >= 1, f"policy.{name}: must be at least 1, got {getattr(self, name)}")
        require(
            self.core != "transformer" or self.core_size % self.core_heads == 0,
            f"policy.core_heads: {self.core_heads} does not divide policy.core_size={self.core_size}",
        )
        require(
            not (self.critic_observation_keys and (self.shared_trunk or self.network)),
            "policy.critic_observation_keys: needs a critic of its own; set policy.shared_trunk=false and no network",
        )
        for name in ("core", "encoder"):
            require(
                self.network is None or getattr(self, name) is None,
                f"policy.{name}: a network of your own brings its own; set policy.{name} or policy.network to null",
            )
        require(math.isfinite(self.log_std_init), f"policy.log_std_init: must be a number, got {self.log_std_init}")
        bounds = [-math.inf, math.inf] if self.log_std_bounds is None else list(self.log_std_bounds)
        require(
            len(bounds) == 2 and bounds[0] <= self.log_std_init <= bounds[1],
            f"policy.log_std_bounds: expected two numbers with policy.log_std_init={self.log_std_init:g} between them, "
            f"or null, got {self.log_std_bounds}",
        )
        require(
            all(size >= 1 for size in self.hidden_sizes),
            f"policy.hidden_sizes: every layer needs at least 1 unit, got {list(self.hidden_sizes)}",
        )
