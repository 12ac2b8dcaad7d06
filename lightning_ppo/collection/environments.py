"""The environments of one rank, to train and to be evaluated in: given or built on first use, and closed."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gymnasium.vector import VectorEnv
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lightning_ppo.envs import make_vector_env
from lightning_ppo.envs.atari import with_lessons
from lightning_ppo.envs.built import remember
from lightning_ppo.envs.faults import close_env
from lightning_ppo.envs.scores import built_by_hand
from lightning_ppo.envs.stagger import prepare
from lightning_ppo.evaluation.play import make_evaluation_env
from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
from lightning_ppo.support.distributed import rank
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.randomness import derive_seeds, own_generators


class Environments:
    """Builds the environments of one rank in each process that asks for them.

    Args:
        settings: Which environment.
        evaluation: How many copies evaluations play in.
        num_envs: Copies of the training environment that this process has.
        seed: Returns the seed of the run.
        given: Training environments that exist already; they are not closed here.
        given_evaluation: Evaluation environments that exist already.
    """

    def __init__(
        self,
        settings: EnvConfig,
        evaluation: EvaluationConfig,
        num_envs: int,
        seed: Callable[[], int],
        given: VectorEnv | None = None,
        given_evaluation: VectorEnv | None = None,
    ) -> None:
        innermost = settings.scores == "innermost"
        if given is not None:
            remember(given)
            given = prepare(built_by_hand(given, innermost), settings.stagger)
        if given_evaluation is not None:
            given_evaluation = built_by_hand(given_evaluation, innermost)
        self.settings = replace(settings, num_envs=num_envs)
        self.evaluation_copies = evaluation.num_envs
        self.seed = seed
        self.given, self.given_evaluation = given, given_evaluation
        self._training: VectorEnv | None = None
        self._evaluation: VectorEnv | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from, less what has been built: it builds its own, as each process does."""
        return self.__dict__ | {"_training": None, "_evaluation": None}

    @property
    def training(self) -> VectorEnv:
        """The training environments that this process has."""
        if self._training is None:
            self._training = self._build_training() if self.given is None else self.given
        return self._training

    def _build_training(self) -> VectorEnv:
        # the process group may not be there yet, but Lightning knows the rank from its launcher
        (seed,) = derive_seeds(self.seed(), getattr(rank_zero_only, "rank", 0) or 0, 1, "process")
        with own_generators(seed):
            return with_lessons(make_vector_env(self.settings), self.settings)

    @property
    def can_evaluate(self) -> bool:
        """Whether there are environments to evaluate in, or can be."""
        return self.given is None or self.given_evaluation is not None

    @property
    def evaluation(self) -> VectorEnv:
        """The evaluation environments of this rank.

        Raises:
            ConfigError: If the training environments were built by hand, and no others were given.
        """
        if not self.can_evaluate:
            raise ConfigError("evaluation_env: needed to evaluate or predict where env is an already built one")
        if self._evaluation is None:
            self._evaluation = self.given_evaluation
        if self._evaluation is None:
            self._evaluation = make_evaluation_env(self.settings, self.evaluation_copies, self.seed(), rank())
        return self._evaluation

    def let_go_after_fork(self) -> None:
        """Build anew in a process that was forked: what was built before belongs to its parent."""
        if self._process != os.getpid():
            self._of_parent = self._training, self._evaluation
            self._training = self._evaluation = None
            self._process = os.getpid()

    def close(self) -> None:
        """Close the environments that were built here."""
        for env, given in ((self._training, self.given), (self._evaluation, self.given_evaluation)):
            if env is not None and env is not given:
                close_env(env)
        self._training = self._evaluation = None
