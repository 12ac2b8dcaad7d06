"""The worker of Gymnasium's AsyncVectorEnv, which has no public name; `plain` does not change it."""

from typing import Any

from gymnasium.vector.async_vector_env import _async_worker


def step_copy(*arguments: Any) -> None:
    """Obey the process that steps the copies; if it is gone, end silently.

    Args:
        arguments: Those of a `worker` of AsyncVectorEnv.
    """
    try:
        _async_worker(*arguments)
    except OSError as error:
        # first the orders could not be read, or an answer not be sent, and then this could not be reported either
        if not isinstance(error.__context__, EOFError | OSError):
            raise
