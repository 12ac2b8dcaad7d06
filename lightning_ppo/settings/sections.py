"""Typed settings: dataclasses with the universal defaults, YAML files and `key=value` overrides merged over them."""

from dataclasses import dataclass, field
from typing import Any

from lightning_ppo.settings.algorithm import (
    NormalizeConfig,
    OptimizerConfig,
    RolloutConfig,
    UpdateConfig,
    check_compile,
    check_rollout_size,
    resolve_epochs,
)
from lightning_ppo.settings.class_path import Registry
from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import require

_RUN = "lightning_ppo.run.loggers"
LOGGERS = Registry(
    "loggers",
    "pytorch_lightning.loggers.Logger",
    {
        "csv": f"{_RUN}.MetricsCSV",
        "tensorboard": f"{_RUN}.TensorBoardEvents",
        "wandb": "pytorch_lightning.loggers.WandbLogger",
        "mlflow": "pytorch_lightning.loggers.MLFlowLogger",
    },
)
CALLBACKS = Registry("callbacks", "pytorch_lightning.callbacks.Callback", {})


@dataclass
class CheckpointConfig:
    """The files in `run_dir/checkpoints`."""

    every_env_steps: int | None = None
    """Environment steps after which last.ckpt is written again, at the end of an epoch; null writes it at each."""
    keep: int = 2
    """Versions kept of each file: last.ckpt and, before it, last-1.ckpt, which is used where last.ckpt is damaged."""
    save_best: bool = True
    """Keep best.ckpt, the agent with the highest evaluation return."""

    def __post_init__(self) -> None:
        require(
            self.every_env_steps is None or self.every_env_steps >= 1,
            f"checkpoint.every_env_steps: must be at least 1 or null, got {self.every_env_steps}",
        )
        require(self.keep >= 1, f"checkpoint.keep: must be at least 1, got {self.keep}")


@dataclass
class Config:
    """All settings of a training run."""

    seed: int = 1
    """Seeds weights, environments and sampling."""
    total_env_steps: int = 1_000_000
    """Training budget in environment steps over all ranks; never exceeded."""
    run_dir: str | None = None
    """Where everything is written; default runs/<env id>/<timestamp>."""
    resume: str | None = None
    """`last` or the path of a checkpoint resumes a run; `auto` resumes if run_dir has a checkpoint, else starts."""
    compile: Any = "auto"
    """Compile the minibatch update with torch.compile: `true`, `false`, or `auto`, which compiles long runs of built-in
    parts if there is a compiler."""
    plain: bool = False
    """Plain torch, none of the shortcuts of `lightning_ppo.speed`: the same results, slower; to isolate a bug."""
    debug: bool = False
    """Print full tracebacks."""
    objective: Any = "clip"
    """The policy objective: a name, a class path, or `{class_path: ..., init_args: {...}}`."""
    loss_terms: list[Any] = field(default_factory=list)
    """Losses added to it: a class path, or `{class_path: ..., init_args: {...}, weight: a number or a schedule}`."""
    rollouts_per_epoch: int = 5
    """Iterations per Lightning epoch, after which evaluation and checkpoints happen."""
    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to `pytorch_lightning.Trainer` as it is."""
    callbacks: list[Any] = field(default_factory=list)
    """Extra callbacks: a class path, or `{class_path: ..., init_args: {...}}`."""
    loggers: list[Any] = field(default_factory=list)
    """Loggers besides CSV and TensorBoard: `wandb`, `mlflow`, or a class path, in the same form."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, f"seed: must lie in 0..2**32 - 1, got {self.seed}")
        require(self.total_env_steps >= 1, f"total_env_steps: must be at least 1, got {self.total_env_steps}")
        require(self.rollouts_per_epoch >= 1, f"rollouts_per_epoch: must be at least 1, got {self.rollouts_per_epoch}")
        check_compile(self.compile, self.plain)
        for registry, entries in ((CALLBACKS, self.callbacks), (LOGGERS, self.loggers)):
            for entry in entries:
                registry.check(entry)
        resolve_epochs(self.objective, self.update)
        check_rollout_size(self.rollout.num_steps, self.env.num_envs, self.update)
