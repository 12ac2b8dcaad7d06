"""Policy and environments make rollouts, in this process or in others."""

from importlib import import_module

import_module("lightning_ppo.speed.light_lightning")  # in processes that collect, nothing else has imported it
