"""Vector environments of tasks that are written in JAX: stepped by one compiled call, seen as torch tensors.

Tensors go from one library to the other through DLPack, which copies nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lightning_ppo.envs.jax_tasks import JaxTask, make_task
from lightning_ppo.envs.stagger import first_lengths
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.tree import tree_map

FRESH = 32
"""Steps after which the states in which episodes start are drawn anew. Drawing them costs as much as many steps."""


class JaxVectorEnv(VectorEnv):
    """N copies of a task with a time limit and SAME_STEP autoreset.

    A copy whose episode ends takes a state that was drawn for a reset. There are N of them, which the copies take in
    turn and which are drawn anew every `FRESH` or N steps, so that no copy starts twice in one of them.

    Attributes:
        device: Where tensors are: `cuda` where JAX has a GPU, else `cpu`.
        stagger: Truncate the first episode of each copy after a random share of the limit.

    Args:
        num_envs: N.
        task: The task; or its name, given its family.
        family: See `make_task`.
        max_episode_steps: Episodes are truncated after so many steps; None takes the task's own limit.
        **kwargs: Of the task.
    """

    stagger = False

    def __init__(
        self,
        num_envs: int,
        task: JaxTask | str,
        family: str = "",
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        import jax

        self.task = make_task(family, task, **kwargs) if isinstance(task, str) else task
        self.max_episode_steps = max_episode_steps or self.task.max_episode_steps
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._draw, self._step = jax.jit(self._drawn), jax.jit(self._stepped)
        self._state: Any = None
        self._fresh: Any = None
        self._count = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all episodes anew.

        Args:
            seed: One for each copy, or one for all together; None draws one.
            options: Not used.
        """
        import jax
        import jax.numpy as jnp

        if not isinstance(seed, Sequence):
            drawn = int(torch.randint(2**31, ())) if seed is None else seed
            keys = jax.random.split(jax.random.PRNGKey(drawn), self.num_envs)
        else:
            keys = jnp.stack([jax.random.PRNGKey(one) for one in seed])
        limits = np.full(self.num_envs, self.max_episode_steps or np.iinfo(np.int32).max, np.int32)
        if self.stagger:
            limits = first_lengths(seed, self.max_episode_steps, self.num_envs).astype(np.int32)
        self._count = 0
        # on a device by name, as all that follows from actions is: what differs in that is compiled again
        keys, steps, limits = jax.device_put((keys, np.zeros_like(limits), limits), jax.devices()[0])
        observations, state = self._draw(keys, 0)
        self._state = keys, state, steps, limits
        self._fresh = self._draw(keys, 1)
        return tree_map(_to_torch, observations), {}

    def step(self, actions: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all copies with actions (N, ...)."""
        every = min(FRESH, self.num_envs)
        if self._count and self._count % every == 0:
            self._fresh = self._draw(self._state[0], 1 + self._count // every)
        self._count += 1
        self._state, results, final = self._step(self._state, self._fresh, self._count, tree_map(_to_jax, actions))
        observations, rewards, terminations, truncations = (tree_map(_to_torch, x) for x in results)
        return observations, rewards, terminations, truncations, {"final_obs": tree_map(_to_torch, final)}

    def _drawn(self, keys: Any, number: Any) -> tuple[Any, Any]:
        """Return observations and states in which episodes start, for the number-th time."""
        import jax

        own = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 0), number))(keys)
        return _typed(jax.vmap(self.task.reset)(own))

    def _stepped(self, state: Any, fresh: Any, count: Any, actions: Any) -> Any:
        """Return the state after a step, what it shows, and the final observations."""
        import jax
        import jax.numpy as jnp

        keys, before, steps, limits = state
        own = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
        seen, after, rewards, terminations = jax.vmap(self.task.step)(own, before, actions)
        terminations, steps = terminations.astype(bool), steps + 1
        truncations = (steps >= limits) & ~terminations
        ended = terminations | truncations

        def begun(now: Any, drawn: Any) -> Any:
            if now.shape[:1] != ended.shape:  # mjx has empty arrays that belong to no copy
                return now
            mask = ended.reshape(-1, *[1] * (now.ndim - 1))
            return jnp.where(mask, jnp.roll(drawn, count, 0).astype(now.dtype), now)

        shown, after = (jax.tree.map(begun, now, drawn) for now, drawn in zip((seen, after), fresh, strict=True))
        steps = jnp.where(ended, 0, steps)
        limits = jnp.where(ended, self.max_episode_steps or np.iinfo(np.int32).max, limits)
        results = shown, rewards.astype(jnp.float32), terminations, truncations
        return _typed(((keys, after, steps, limits), results, seen))

    def get_state(self) -> dict[str, Any]:
        """Return everything that what comes next depends on, as plain data."""
        import jax

        leaves = [np.array(leaf) for leaf in jax.tree.leaves((self._state, self._fresh))]
        return {"leaves": leaves, "count": self._count}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ConfigError: If it is that of another task.
        """
        import jax
        import jax.numpy as jnp

        now, structure = jax.tree.flatten((self._state, self._fresh))
        shapes = [[(tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves] for leaves in (now, state["leaves"])]
        if shapes[0] != shapes[1]:
            raise ConfigError("its states have other parts than those that were saved")
        self._state, self._fresh = jax.tree.unflatten(structure, map(jnp.asarray, state["leaves"]))
        self._count = state["count"]


def _typed(tree: Any) -> Any:
    """Return arrays without the mark that their type may yet give way, which the compiler would tell apart."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), tree)


def _to_torch(x: Any) -> Tensor:
    return torch.from_dlpack(x)


def _to_jax(x: Tensor) -> Any:
    import jax.numpy as jnp

    # JAX has numbers of 64 bits only where it is told to
    narrow = {torch.int64: torch.int32, torch.float64: torch.float32}.get(x.dtype, x.dtype)
    return jnp.from_dlpack(x.to(narrow).contiguous())
