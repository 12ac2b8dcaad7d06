"""Seeded vector environments from an id, an import path, or as the user built them."""

from lightning_ppo.envs.make import make_vector_env
from lightning_ppo.envs.state import get_env_state, set_env_state
from lightning_ppo.envs.stepper import autoreset_mode
from lightning_ppo.envs.vector_stepper import VectorStepper

__all__ = ["VectorStepper", "autoreset_mode", "get_env_state", "make_vector_env", "set_env_state"]
