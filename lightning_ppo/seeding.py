"""Seeds: one per run seed, purpose and global index, of 32 bits, which is what every environment takes.

Those of one purpose never repeat within a run. Between purposes, and between runs, two seeds are alike by chance alone:
one pair in 2^32.
"""

import numpy as np

PURPOSES = (
    *("training", "evaluation", "noise", "shuffle", "test", "video", "noise of another group"),
    *("process", "evaluation process"),
)


def derive_seeds(seed: int, first: int, count: int, purpose: str) -> list[int]:
    """Return one seed for each of the global indices first..first+count-1.

    Consecutive integers would make environment 1 of run 1 the environment 0 of run 2. A seed that an index before has
    is replaced by the next of its sequence, so the seeds of all indices before are derived, too.

    Args:
        seed: Seed of the run.
        first: Global index of the first environment or rank.
        count: How many.
        purpose: one of PURPOSES.
    """
    key = PURPOSES.index(purpose)
    seeds: dict[int, None] = {}
    for index in range(first + count if count else 0):
        sequence, words = np.random.SeedSequence([seed, key, index]), 1
        while (found := int(sequence.generate_state(words)[-1])) in seeds:
            words += 1
        seeds[found] = None
    return list(seeds)[first:]
