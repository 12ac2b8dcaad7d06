"""Settings of the algorithm: rollouts, update, optimizer, normalisation."""

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_ppo.settings.class_path import Registry, as_path, class_path_of
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.support.errors import ConfigError, require

_OBJECTIVES = "lightning_ppo.update.policy_objectives"
OBJECTIVES = Registry(
    "objective",
    f"{_OBJECTIVES}.PolicyObjective",
    {
        "clip": f"{_OBJECTIVES}.Clip",
        "policy_gradient": f"{_OBJECTIVES}.PolicyGradient",
        "surrogate": f"{_OBJECTIVES}.Surrogate",
        "kl_penalty": f"{_OBJECTIVES}.KLPenalty",
        "adaptive_kl": f"{_OBJECTIVES}.AdaptiveKL",
        "trpo": f"{_OBJECTIVES}.TrustRegionSurrogate",
    },
)
LOSS_TERMS = Registry("loss_terms", "lightning_ppo.update.loss_terms.LossTerm", {})
OPTIMIZERS = Registry("optimizer", "torch.optim.Optimizer", {"adam": "lightning_ppo.speed.flat.FlatAdam"})
SCHEDULERS = Registry("optimizer.scheduler", "torch.optim.lr_scheduler.LRScheduler", {})
SCHEDULER_KEYS = {"class_path", "init_args", "interval", "frequency", "monitor"}

_DISCOUNTS = ("gamma", "gae_lambda")


@dataclass
class RolloutConfig:
    """How much an iteration collects, and how returns are estimated."""

    num_steps: int = 64
    """T, steps per environment and iteration."""
    gamma: Any = 0.995
    """Discount factor in [0, 1], a number or a schedule."""
    gae_lambda: Any = 0.95
    """Lambda of generalised advantage estimation in [0, 1], a number or a schedule; 0 is the TD error, 1 the Monte
    Carlo return."""
    overlap: bool = False
    """Collect the next rollout in another process during the update, with a policy one update older."""
    processes: int = 1
    """Processes that collect at the same time, each with its share of the environments."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "processes"):
            require(getattr(self, name) >= 1, f"rollout.{name}: must be at least 1, got {getattr(self, name)}")
        self.schedules()

    def schedules(self) -> dict[str, Schedule]:
        """Return the scheduled coefficients by name."""
        return {name: Schedule.parse(getattr(self, name), f"rollout.{name}", most=1.0) for name in _DISCOUNTS}


@dataclass
class TrustRegionConfig:
    """The step of the objective `trpo` (TRPO paper, appendix C)."""

    max_kl: Any = 0.01
    """Delta, bound on the mean KL divergence of a step, in nats; a number or a schedule."""
    damping: Any = 0.1
    """Multiple of the identity added to the Fisher matrix; a number or a schedule."""
    cg_iterations: int = 10
    """Iterations of conjugate gradients, each one Fisher-vector product over the whole rollout."""
    line_search_steps: int = 10
    """Step lengths that are tried, each half the one before, until the step is rejected."""

    def __post_init__(self) -> None:
        for name in ("cg_iterations", "line_search_steps"):
            value = getattr(self, name)
            require(value >= 1, f"update.trust_region.{name}: must be at least 1, got {value}")
        self.schedules()

    def schedules(self) -> dict[str, Schedule]:
        """Return the scheduled coefficients by name."""
        names = "max_kl", "damping"
        key = "update.trust_region."
        return {name: Schedule.parse(getattr(self, name), f"{key}{name}", positive=True) for name in names}


@dataclass
class UpdateConfig:
    """The update of one PPO iteration. Coefficients take a number or a schedule."""

    epochs: Any = None
    """Passes over the rollout (with `trpo`, of the critic only), a number or a schedule, whose values are rounded; null
    means 10, or 1 for `policy_gradient`."""
    minibatch_size: int = 128
    """Transitions per optimizer step and rank; must divide num_steps x num_envs."""
    micro_batch_size: int | None = None
    """Transitions of one forward and backward pass, a divisor of minibatch_size; the gradients of the passes add up to
    those of the minibatch. Evaluation passes over a rollout are no larger. null takes minibatches whole."""
    sequence_length: int | None = None
    """L, consecutive steps through which a recurrent policy is trained, a divisor of num_steps and minibatch_size; null
    means the largest with four sequences in a minibatch."""
    clip_range: Any = 0.2
    """Epsilon of the clipped surrogate (PPO paper, equation 7), below 1, usually 0.1 to 0.3."""
    clip_range_high: Any = None
    """How far the ratio may rise above 1; null takes `clip_range`, which then bounds both sides."""
    kl_coefficient: Any = 1.0
    """Beta of the objective `kl_penalty`, and the start of beta of `adaptive_kl` (equation 8)."""
    kl_target: Any = 0.01
    """KL divergence that the objective `adaptive_kl` aims at (section 4), in nats."""
    trust_region: TrustRegionConfig = field(default_factory=TrustRegionConfig)
    value_clip_range: Any = None
    """Clip range of the value function as in OpenAI baselines; null turns it off."""
    entropy_coefficient: Any = 0.0
    """Weight of the entropy bonus (c2 of equation 9), usually 0 to 0.02."""
    value_coefficient: Any = 0.5
    """Weight of the value loss (c1 of equation 9)."""
    std_decay: Any = field(
        default_factory=lambda: {"kind": "piecewise", "points": [[0.0, 0.0], [0.75, 0.0], [1.0, 0.5]]}
    )
    """Log units by which the standard deviation of Gaussian actions is lowered in addition to what is learnt, a
    schedule over the training budget; 0 turns it off. It has no effect with the objective `trpo`."""
    noise_color: Any = 0.0
    """Colour of the noise of Gaussian actions, a number up to 2 or a schedule over the training budget: its power over
    the steps falls as 1 / f^colour with frequency f. 0 is white, each step by itself, 1 is pink."""
    max_grad_norm: Any = 0.5
    """Bound on the global gradient norm; null turns clipping off."""
    target_kl: Any = None
    """End the iteration after an epoch whose KL to the behaviour policy exceeds this, in nats; null never does."""
    recompute_advantages: bool = False
    """Estimate advantages and value targets anew before each epoch, with the current critic."""
    normalize_advantages: bool = True
    """Shift and scale the advantages of a rollout (over all ranks) to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        self.epochs = int(self.epochs) if isinstance(self.epochs, float) and self.epochs.is_integer() else self.epochs
        passes = self._passes()
        require(min(passes.values) >= 1.0, f"update.epochs: must be at least 1, got {self.epochs}")
        require(
            passes.kind != "constant" or passes.start.is_integer(),
            f"update.epochs: expected an integer, a schedule or null, got {self.epochs}",
        )
        require(self.minibatch_size >= 1, f"update.minibatch_size: must be at least 1, got {self.minibatch_size}")
        micro = self.micro_batch_size
        require(
            micro is None or (micro >= 1 and self.minibatch_size % micro == 0),
            f"update.micro_batch_size: must divide update.minibatch_size={self.minibatch_size}, got {micro}",
        )
        self.schedules()

    def _passes(self) -> Schedule:
        return Schedule.parse(1 if self.epochs is None else self.epochs, "update.epochs")

    def epochs_at(self, progress: float) -> int:
        """Return the passes over a rollout at `progress`, 1 where they are null."""
        return round(self._passes()(progress))

    @property
    def most_epochs(self) -> int:
        """The largest number of passes over a rollout."""
        return round(max(self._passes().values))

    @property
    def fixed_epochs(self) -> bool:
        """Whether each iteration makes the same number of passes."""
        return self._passes().kind == "constant" and self.target_kl is None

    def schedules(self) -> dict[str, Schedule]:
        """Return the scheduled coefficients by name; those that may be null only where they are set.

        Passes are no coefficient; see `epochs_at`.
        """
        names = ["clip_range", "kl_coefficient", "entropy_coefficient", "value_coefficient", "std_decay", "noise_color"]
        names += [name for name in ("clip_range_high", "value_clip_range") if getattr(self, name) is not None]
        schedules = {
            name: Schedule.parse(getattr(self, name), f"update.{name}", most=2.0 if name == "noise_color" else math.inf)
            for name in names
        }
        names = ["kl_target", *(name for name in ("max_grad_norm", "target_kl") if getattr(self, name) is not None)]
        schedules |= {name: Schedule.parse(getattr(self, name), f"update.{name}", positive=True) for name in names}
        require(
            max(schedules["clip_range"].values) < 1.0,
            f"update.clip_range: a ratio is never below 0, so it must be less than 1, got {self.clip_range}; "
            "clip_range_high may be larger",
        )
        return schedules


@dataclass
class OptimizerConfig:
    """The optimizer and its learning rate."""

    class_path: Any = "adam"
    """`adam`, or the class path of a `torch.optim.Optimizer`."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of another optimizer than `adam`, besides parameters and learning rate."""
    learning_rate: Any = field(
        default_factory=lambda: {
            "kind": "adaptive_kl",
            "start": 3e-4,
            "target_kl": 0.02,
            "minimum": 1e-5,
            "maximum": 3e-4,
            "cooldown": 0.5,
        }
    )
    """Step size: a number or a schedule; `adaptive_kl` adjusts it towards a KL of target_kl per iteration.

    With the objective `trpo` it is the critic's, and `adaptive_kl` keeps it at its start."""
    groups: list[Any] = field(default_factory=list)
    """Parameters with a learning rate of their own: `{parameters: "*.encoder.*", factor: 0.1}`. `parameters` is a
    pattern of names as `model.named_parameters()` has them, or a list of patterns; `factor` multiplies the learning
    rate, 0 freezes; `init_args` has arguments of the optimizer for this group. The first group that matches counts."""
    scheduler: Any = None
    """A scheduler that starts at `learning_rate`, which must then be a number: a class path, or `{class_path: ...,
    init_args: {...}, interval: step or epoch, frequency: ..., monitor: ...}`; null uses `learning_rate` alone."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of the moments of `adam`."""
    epsilon: float = 1e-5
    """Epsilon of `adam`; 1e-5 as in OpenAI baselines."""

    def __post_init__(self) -> None:
        self.class_path, self.scheduler = as_path(self.class_path), as_path(self.scheduler)
        OPTIMIZERS.check(self.class_path)
        SCHEDULERS.check(self.scheduler)
        require(isinstance(self.init_args, dict), f"optimizer.init_args: expected a mapping, got {self.init_args!r}")
        if self.class_path in OPTIMIZERS:
            require(
                not self.init_args,
                f"optimizer.init_args: {self.class_path} takes optimizer.betas and optimizer.epsilon; for other "
                "arguments name a class, such as optimizer.class_path=torch.optim.AdamW",
            )
        else:
            for name, default in (("betas", [0.9, 0.999]), ("epsilon", 1e-5)):
                require(
                    getattr(self, name) == default,
                    f"optimizer.{name}: of adam alone; give {self.class_path} its own in optimizer.init_args",
                )
            require(
                "lr" not in self.init_args,
                "optimizer.init_args.lr: the learning rate is optimizer.learning_rate; set it there",
            )
        for group in self.groups:
            self._check_group(group)
        schedule = self.schedule()
        unknown = set(self.scheduler) - SCHEDULER_KEYS if isinstance(self.scheduler, dict) else ()
        require(
            not unknown,
            f"optimizer.scheduler: expected {', '.join(sorted(SCHEDULER_KEYS))}, got {', '.join(map(str, unknown))}",
        )
        require(
            self.scheduler is None or schedule.kind == "constant",
            f"optimizer.scheduler: it starts at optimizer.learning_rate, which must be a number then, not "
            f"{schedule.kind}; set optimizer.learning_rate=3e-4, or optimizer.scheduler=null",
        )
        require(self.epsilon > 0.0, f"optimizer.epsilon: must be positive, got {self.epsilon:g}")
        require(
            len(self.betas) == 2 and all(0.0 <= beta < 1.0 for beta in self.betas),
            f"optimizer.betas: expected two numbers in [0, 1), got {list(self.betas)}",
        )

    def _check_group(self, group: Any) -> None:
        key = "optimizer.groups"
        fits = isinstance(group, dict) and set(group) <= {"parameters", "factor", "init_args"}
        require(fits, f"{key}: expected mappings of parameters, factor and init_args, got {group!r}")
        patterns = group.get("parameters")
        named = isinstance(patterns, str) or (
            isinstance(patterns, list) and len(patterns) > 0 and all(isinstance(p, str) for p in patterns)
        )
        require(named, f"{key}.parameters: expected a pattern such as '*.encoder.*', or a list, got {patterns!r}")
        factor, own = group.get("factor", 1.0), group.get("init_args", {})
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        require(
            number and 0.0 <= factor < math.inf,
            f"{key}.factor: expected a number that multiplies the learning rate, got {factor!r}",
        )
        require(isinstance(own, dict), f"{key}.init_args: expected a mapping, got {own!r}")
        require(
            not own or self.class_path not in OPTIMIZERS,
            f"{key}.init_args: {self.class_path} takes none; name a class, such as "
            "optimizer.class_path=torch.optim.AdamW",
        )
        require("lr" not in own, f"{key}.init_args.lr: set {key}.factor, which multiplies optimizer.learning_rate")

    def schedule(self) -> Schedule:
        """Return the learning rate as a schedule."""
        return Schedule.parse(self.learning_rate, "optimizer.learning_rate", allow_adaptive=True)


@dataclass
class NormalizeConfig:
    """Running statistics that normalise observations and scale rewards."""

    observations: bool = True
    """Shift and scale observations to mean 0 and variance 1."""
    rewards: bool = True
    """Divide rewards by the standard deviation of the discounted return."""
    observation_clip: float = 10.0
    """Bound on normalised observations."""
    reward_clip: float = 10.0
    """Bound on scaled rewards."""
    epsilon: float = 1e-8
    """Added to variances before the square root."""

    def __post_init__(self) -> None:
        for name in ("observation_clip", "reward_clip", "epsilon"):
            require(getattr(self, name) > 0.0, f"normalize.{name}: must be positive, got {getattr(self, name):g}")


def resolve_epochs(objective: Any, update: UpdateConfig) -> Any:
    """Return the passes over a rollout under an objective, a number or a schedule.

    Raises:
        ConfigError: If the objective is unknown, or has no ratio that would allow more than one pass.
    """
    OBJECTIVES.check(objective)
    once = class_path_of(objective) == "policy_gradient"
    if once and update.most_epochs > 1:
        raise ConfigError(
            f"update.epochs: {update.most_epochs} passes need a ratio of new to old policy, which policy_gradient has "
            "not; set it to 1, or objective=clip"
        )
    return update.epochs or (1 if once else 10)


def resolve_sequence_length(num_steps: int, update: UpdateConfig, recurrent: bool) -> int:
    """Return the length of the sequences in which a policy learns from rollouts of T steps, 1 without recurrence.

    Raises:
        ConfigError: If the length asked for does not divide T and the minibatch size, or nothing needs sequences.
    """
    if not recurrent:
        require(
            update.sequence_length is None,
            "update.sequence_length: only a recurrent policy learns in sequences; set policy.core, or remove it",
        )
        return 1
    if update.sequence_length is None:
        common = math.gcd(num_steps, update.minibatch_size)
        fitting = [d for d in range(1, common + 1) if common % d == 0 and 4 * d <= update.minibatch_size]
        length = max(fitting, default=1)
        _check_sequences_fit(length, update.micro_batch_size)
        return length
    for name, size in (("rollout.num_steps", num_steps), ("update.minibatch_size", update.minibatch_size)):
        if update.sequence_length < 1 or size % update.sequence_length:
            raise ConfigError(
                f"update.sequence_length: {update.sequence_length} does not divide {name}={size}; "
                f"{math.gcd(num_steps, update.minibatch_size)} is the largest that fits"
            )
    _check_sequences_fit(update.sequence_length, update.micro_batch_size)
    return update.sequence_length


def _check_sequences_fit(length: int, micro_batch_size: int | None) -> None:
    """Raise ConfigError unless a micro-batch has whole sequences of L steps."""
    if micro_batch_size is not None and micro_batch_size % length:
        raise ConfigError(
            f"update.micro_batch_size: {micro_batch_size} rows are no whole sequences of {length} steps; set it to a "
            f"multiple, or update.sequence_length={math.gcd(length, micro_batch_size)}"
        )


def check_rollout_size(num_steps: int, num_envs: int, update: UpdateConfig) -> None:
    """Raise ConfigError unless a rollout of T x N transitions divides into minibatches without remainder."""
    size = num_steps * num_envs
    if size % update.minibatch_size:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - update.minibatch_size))
        raise ConfigError(
            f"update.minibatch_size: {update.minibatch_size} does not divide the rollout of "
            f"{num_steps} steps x {num_envs} envs = {size} transitions; the nearest size that does is {nearest}"
        )
    if size < 2 and update.normalize_advantages:
        raise ConfigError(
            "update.normalize_advantages: a single transition has no standard deviation; "
            "set it to false or raise rollout.num_steps or env.num_envs"
        )


def check_compile(compile: Any, plain: bool) -> None:
    """Raise ConfigError unless `compile` is a bool or `auto`, and not True without shortcuts, of which it is one."""
    require(isinstance(compile, bool) or compile == "auto", f"compile: expected auto, true or false, got {compile!r}")
    require(
        not (plain and compile is True),
        "plain: compile=true is one of the shortcuts that plain=true leaves out; set one only",
    )
