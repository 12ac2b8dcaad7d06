"""What is easily overlooked: seeds that collide, CUDA started for nothing, memory kept, ranks that do not agree."""

import gc
import signal
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from lightning_ppo.policy.recurrence import RecurrentCore
from lightning_ppo.run import stopping
from lightning_ppo.run.stopping import GracefulStop, Interrupted
from lightning_ppo.support import randomness as random_state
from lightning_ppo.support.randomness import derive_seeds
from tests.kit.training import make_pair, make_trainer


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


def test_a_recording_lets_go_of_the_batch_after_an_iteration(imitation, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model, data = make_pair(rollouts_per_epoch=2, compile=True)
    kept, alive = [], []
    backward = model._backward

    def watched(batch, rows, scale):
        if not kept or kept[-1]() is not batch.advantages:
            kept.append(weakref.ref(batch.advantages))
        return backward(batch, rows, scale)

    def collected(*_):
        gc.collect()
        alive.append([reference() is not None for reference in kept])

    model._backward = watched
    model.on_train_batch_start = collected
    make_trainer().fit(model, data)
    assert len(kept) == 2 and alive == [[], [False]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_ranks_stop_before_the_test_if_one_was_told_to(monkeypatch, number):
    monkeypatch.setattr(stopping, "max_over_ranks", lambda own: torch.full_like(own, int(number)))
    stop, module = GracefulStop(None), nn.Module()
    module.device = torch.device("cpu")
    with pytest.raises(Interrupted, match=number.name):
        stop.on_test_start(None, module)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cores_hold_weights_and_no_layer_that_needs_them_in_one_buffer(kind):
    core = RecurrentCore(kind, 3, 4)
    assert not any(isinstance(module, nn.RNNBase) for module in core.modules())
    layer = (nn.LSTM if kind == "lstm" else nn.GRU)(3, 4)
    assert [(n, p.shape) for n, p in core.cell.named_parameters()] == [
        (n, p.shape) for n, p in layer.named_parameters()
    ]
