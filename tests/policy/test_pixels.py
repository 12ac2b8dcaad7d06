"""Images: encoders, bytes until they are inside the network, and precision and threads by the processor."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces

from lightning_ppo import PPO
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.images import ImpalaCNN, NatureCNN
from lightning_ppo.rollout.shapes import Minibatch
from lightning_ppo.run.callbacks import Timing
from lightning_ppo.run.trainer import build_trainer
from lightning_ppo.settings.loading import load
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.speed.freed_memory import keep_freed_memory
from lightning_ppo.speed.hardware import fastest_precision, limit_threads, use_cores
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.tree import take_rows
from tests.kit.collecting import transitions
from tests.kit.envs import vector
from tests.kit.training import learn

IMAGE = spaces.Box(0, 255, (4, 40, 44), np.uint8)


class Lights(gymnasium.Env):
    """Shows which of three places is lit; reward 1 for naming it, 20 times."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(3)

    def _observation(self):
        picture = np.zeros((36, 36, 1), np.uint8)
        self.lit = int(self.np_random.integers(3))
        picture[12 * self.lit : 12 * self.lit + 8, 10:30] = 200
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        reward = float(action == self.lit)
        return self._observation(), reward, self.t == 20, False, {}


@pytest.mark.parametrize("encoder", [NatureCNN, ImpalaCNN])
def test_encoders_see_pixels_divided_by_255(encoder):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, *IMAGE.shape), dtype=torch.uint8)
    cnn = encoder(IMAGE.shape)
    first = torch.nn.functional.conv2d(images / 255.0, cnn[0].weight, cnn[0].bias, cnn[0].stride, cnn[0].padding)
    expected = torch.nn.Sequential(*list(cnn)[1:])(first)
    torch.testing.assert_close(cnn(images), expected, rtol=1e-4, atol=1e-5)


def test_images_of_a_rollout_lie_channels_last_in_memory():
    space = spaces.Dict(
        {"picture": IMAGE, "numbers": spaces.Box(-1, 1, (3, 40, 44)), "last": Lights().observation_space}
    )
    agent = ActorCritic(space, spaces.Discrete(2))
    seen = {
        key: torch.from_numpy(np.stack([[part.sample() for _ in range(3)] for _ in range(2)]))
        for key, part in space.items()
    }
    there = agent.lay_out(seen)
    for key, leaf in there.items():
        assert torch.equal(leaf, seen[key])
        rows = take_rows(leaf.flatten(0, 1), torch.tensor([4, 0]))
        assert torch.equal(rows, seen[key].flatten(0, 1)[[4, 0]])
        assert rows.is_contiguous(memory_format=torch.channels_last) == (key == "picture"), key


class Flat(torch.nn.Module):
    """Takes for granted that images lie in memory in the order of their dimensions."""

    num_features = 4 * 40 * 44

    def __init__(self, observation_space):
        super().__init__()

    def forward(self, images):
        return images.view(len(images), -1) / 255.0


def test_encoders_of_ones_own_get_images_as_they_are():
    agent = ActorCritic(IMAGE, spaces.Discrete(2), PolicyConfig(encoder=f"{__name__}.Flat", hidden_sizes=[4]))
    images = torch.zeros(2, 3, *IMAGE.shape, dtype=torch.uint8)
    assert agent.lay_out(images) is images
    assert agent.value(agent.lay_out(images).flatten(0, 1)).shape == (6,)


def test_half_precision_divides_the_pixels():
    """Weights divided by 255 would be too small for it."""
    torch.manual_seed(0)
    layer = NatureCNN(IMAGE.shape)[0].half()
    with torch.no_grad():
        layer.weight.mul_(1e-2)
        pixels = torch.randint(0, 256, (2, *IMAGE.shape)).half()
        exact = torch.nn.functional.conv2d(pixels.double() / 255.0, layer.weight.double(), stride=4)
    torch.testing.assert_close(layer(pixels).double(), exact, rtol=5e-3, atol=1e-4)


@pytest.mark.learning
def test_pictures_are_learnt_from():
    pl.seed_everything(1, verbose=False)
    model = learn(
        vector([Lights] * 8),
        32,
        10,
        gamma=0.0,
        update={"epochs": 2, "minibatch_size": 64},
        optimizer={"learning_rate": 1e-3},
        policy={"hidden_sizes": [], "shared_trunk": True},
    )
    episodes = play(model.policy, vector([Lights]), 5, seeds=[7])
    assert episodes.returns.mean() > 18.0  # at random: 6.7


@pytest.mark.parametrize(("encoder", "features"), [(NatureCNN, 512), (ImpalaCNN, 256)])
def test_encoders_take_channels_first_and_last(encoder, features):
    torch.manual_seed(1)
    images = torch.randint(0, 256, (3, *IMAGE.shape), dtype=torch.uint8)
    first, last = encoder((4, 40, 44)), encoder((40, 44, 4))
    last.load_state_dict(first.state_dict())
    shown = first(images)
    assert shown.shape == (3, features) == (3, first.num_features)
    torch.testing.assert_close(last(images.movedim(1, -1)), shown)
    assert not torch.equal(shown[0], shown[1])


def test_a_trust_region_moves_a_cnn_within_its_bound():
    pl.seed_everything(1, verbose=False)
    update = {"epochs": 1, "minibatch_size": 32}
    model = learn(vector([Lights] * 4), 16, 2, gamma=0.0, objective="trpo", update=update, policy={"hidden_sizes": []})
    measured = model.trainer.callback_metrics
    assert 0.0 < measured["update/kl"] <= 0.01 * (1.0 + 1e-4)
    assert measured["update/step_fraction"] > 0.0 and measured["update/improvement"] > 0.0


def agent(encoder):
    torch.manual_seed(1)
    settings = PolicyConfig(encoder=encoder, hidden_sizes=[], shared_trunk=True)
    return ActorCritic(IMAGE, spaces.Discrete(5), settings)


def test_impala_is_a_name_in_the_settings():
    (cnn,) = agent("impala").network.actor_trunk.encoder.cnns
    assert isinstance(cnn, ImpalaCNN)
    # 16, 32 and 32 channels of 3 x 3 after 4, and four convolutions more in each of the three sections
    convolutions = [m for m in cnn.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16] * 5 + [32] * 10
    with pytest.raises(ConfigError, match=r"policy.encoder: expected a class path or one of impala, got 'resnet'"):
        PolicyConfig(encoder="resnet")


def gradients(encoder, dtype):
    policy = agent(encoder)
    images = torch.randint(0, 256, (64, *IMAGE.shape), dtype=torch.uint8)
    batch: Minibatch = transitions(images, torch.arange(64) % 5)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32, cache_enabled=False):
        now = policy.evaluate(batch)
        loss = (now.log_probs * torch.linspace(-1.0, 1.0, 64)).mean() + (now.values - 1.0).square().mean()
    loss.backward()
    assert now.values.dtype == now.log_probs.dtype == torch.float32
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("encoder", [None, "impala"])
def test_gradients_in_half_precision_point_the_same_way(encoder):
    exact, half = gradients(encoder, torch.float32), gradients(encoder, torch.bfloat16)
    assert torch.cosine_similarity(exact, half, dim=0) > 0.995
    assert half.norm() / exact.norm() == pytest.approx(1.0, abs=0.03)


def test_convolutions_get_the_cores_and_small_networks_one_thread(monkeypatch):
    pixels, numbers = agent(None), ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    use_cores(pixels)
    limit_threads()
    assert told == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads()
    use_cores(numbers)
    assert told == [1]
    use_cores(pixels)
    use_cores(pixels, processes=4)
    assert told == [1, 6, 1]


@pytest.mark.parametrize(
    ("library", "variables", "told"),
    [
        # M_MMAP_THRESHOLD is -3 and M_TRIM_THRESHOLD -1 in malloc.h
        ("glibc", {}, [(-3, 32 * 1024**2), (-1, 1024**3)]),
        ("glibc", {"MALLOC_ARENA_MAX": "1"}, []),
        ("glibc", {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0"}, []),
        ("", {}, []),
    ],
)
def test_glibc_alone_is_told_to_keep_memory_unless_a_person_tells_it(monkeypatch, library, variables, told):
    calls = []
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *given: calls.append(given)))
    keep_freed_memory()
    assert calls == told


def test_freed_memory_is_used_again_unless_the_person_says_how():
    """In processes of their own, since the setting stays; other C libraries go their own way in both."""
    script = """
import resource, torch
from lightning_ppo.speed.freed_memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**22), torch.ones(2**22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(10):
    faults()
print(sum(faults() for _ in range(20)))
"""

    def faults(**variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        command = [sys.executable, "-c", script]
        return int(subprocess.run(command, env={**environment, **variables}, capture_output=True, check=True).stdout)

    fewer = 10 if platform.libc_ver()[0] == "glibc" else 0
    assert fewer * faults() < faults(MALLOC_MMAP_THRESHOLD_="131072")


def test_precision_follows_the_processor_and_the_person(monkeypatch, tmp_path):
    def precision(*overrides, space=IMAGE, **settings):
        model = PPO(space, spaces.Discrete(2), **settings)
        return build_trainer(load([], ["evaluation.episodes=0", *overrides]), tmp_path, Timing(), model, None).precision

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert precision() == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision() == "bf16-mixed"
    assert precision("trainer.precision=32-true") == "32-true"
    assert precision(space=spaces.Box(-1, 1, (3,))) == "32-true"
    assert precision(objective="trpo") == "32-true"
    assert fastest_precision(agent(None), "gpu") == "32-true"
