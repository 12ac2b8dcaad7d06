"""Random states and seeds: seeds of a run never collide, and looking at random states starts no GPU."""

import numpy as np
import torch

from lightning_ppo.support import randomness as random_state
from lightning_ppo.support.randomness import derive_seeds


def test_seeds_of_a_run_never_repeat():
    first, second = 75_673, 89_578  # whose first words are the same
    plain = [int(np.random.SeedSequence([0, 0, index]).generate_state(1)[0]) for index in (first, second)]
    assert plain[0] == plain[1]
    seeds = derive_seeds(0, first, second - first + 1, "training")
    assert seeds[0] == plain[0] and len(set(seeds)) == len(seeds)
    assert derive_seeds(0, 3, 0, "training") == []


def test_seeds_that_do_not_collide_stay_what_they_were():
    assert derive_seeds(1, 2, 2, "evaluation") == [
        int(np.random.SeedSequence([1, 1, index]).generate_state(1)[0]) for index in (2, 3)
    ]


def test_random_states_start_no_gpu(monkeypatch):
    def start(*_):
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", start)
    state = random_state.get_random_state()
    assert state["cuda"] == []
    drawn = torch.rand(3)
    random_state.set_random_state(state)
    assert torch.equal(torch.rand(3), drawn)
