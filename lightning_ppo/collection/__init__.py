"""Policy and environments make rollouts, in this process or in others."""

import lightning_ppo.speed.light_lightning  # noqa: F401  # in processes that collect, nothing else has imported it
