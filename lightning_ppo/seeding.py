"""Seeds that never overlap: one per run seed, purpose and global index."""

import numpy as np

PURPOSES = (
    *("training", "evaluation", "noise", "shuffle", "test", "video", "noise of another group"),
    *("process", "evaluation process"),
)


def derive_seeds(seed: int, first: int, count: int, purpose: str) -> list[int]:
    """Return one seed for each of the global indices first..first+count-1.

    Consecutive integers would make environment 1 of run 1 the environment 0 of run 2.

    Args:
        seed: Seed of the run.
        first: Global index of the first environment or rank.
        count: How many.
        purpose: one of PURPOSES.
    """
    key = PURPOSES.index(purpose)
    return [int(np.random.SeedSequence([seed, key, i]).generate_state(1)[0]) for i in range(first, first + count)]
