"""Time training on a GPU, or on the CPU, and print one table.

    python benchmarks/gpu.py                                  everything on the GPU
    python benchmarks/gpu.py --device cpu --threads 2 --workloads 3 4    1,024 CartPoles in torch on two cores
    python benchmarks/gpu.py --device cpu --smoke             does everything work? tiny sizes, figures mean nothing

lightning_ppo runs through `train.py` with its logging on, eager and with compile=true (on a GPU: CUDA graphs), images
also in bfloat16. The table also has a loop in the style of CleanRL, written for this benchmark, on the same device with
the same setting of TF32, and what LeanRL publishes for one H100 (another machine, so a ratio to it says less). Speed
is that of the whole loop after the warm-up, medians of interleaved runs.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical, Independent, Normal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lightning_ppo.envs import make_vector_env
from lightning_ppo.run.training import train
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import load

WARM_UP = 3
"""Iterations before the clock starts; the first one compiles."""
CARTPOLE = "lightning_ppo.envs.torch_envs:TorchCartPole"


@dataclass
class Workload:
    """A rollout and what is done with it, the same for every system."""

    env_id: str
    num_envs: int
    num_steps: int
    epochs: int
    minibatches: int
    iterations: int
    """Iterations timed."""
    lean_rl: int | None = None
    """Environment steps per second that LeanRL publishes."""
    settings: tuple[str, ...] = ()
    """Of lightning_ppo, besides those that the other fields say."""

    @property
    def size(self) -> int:
        """Environment steps of an iteration."""
        return self.num_envs * self.num_steps

    @property
    def label(self) -> str:
        """As the table names it."""
        sizes = f"{self.num_envs:,} x {self.num_steps:,}, {self.epochs} epochs x {self.minibatches} minibatches"
        lean = "; one ReLU trunk for actor and critic" if self.settings == LEAN else ""
        return f"{self.env_id.rpartition(':')[2]}, {sizes}{lean}"


IMAGES = ("normalize.observations=false", "policy.hidden_sizes=[]", "policy.shared_trunk=true")
LEAN = ("policy.activation=relu", "policy.shared_trunk=true")
WORKLOADS = [
    Workload("HalfCheetah-v5", 1, 2048, 10, 32, 5, 1774),
    Workload("ALE/Breakout-v5", 8, 128, 4, 4, 20, 6809, IMAGES),
    Workload(CARTPOLE, 4096, 32, 4, 4, 30),
    Workload(CARTPOLE, 1024, 32, 4, 4, 30),
    Workload(CARTPOLE, 1024, 32, 4, 4, 30, None, LEAN),
]
TINY = [Workload("Pendulum-v1", 2, 16, 2, 2, 1, 1000), Workload(CARTPOLE, 8, 16, 2, 2, 1)]


class Laps(pl.Callback):
    """Notes when each iteration was over, on the device too."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Note the end of an iteration."""
        self.times.append(now())


def now() -> float:
    """Return the time when the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(
    workload: Workload,
    device: str,
    seed: int,
    compiled: bool,
    precision: str = "32-true",
    callbacks: Sequence[pl.Callback] = (),
) -> list[float]:
    """Train with lightning_ppo and return when each iteration ended."""
    laps = Laps()
    in_torch = workload.env_id == CARTPOLE
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *(f"env.id={workload.env_id}", f"env.num_envs={workload.num_envs}"),
            *(f"rollout.num_steps={workload.num_steps}", f"update.epochs={workload.epochs}", f"seed={seed}"),
            *(f"update.minibatch_size={workload.size // workload.minibatches}", "optimizer.learning_rate=2e-3"),
            *(f"total_env_steps={workload.size * (WARM_UP + workload.iterations)}", f"compile={compiled}"),
            *("evaluation.episodes=0", "evaluation.final_episodes=0", "trainer.enable_checkpointing=false"),
            *("trainer.enable_progress_bar=false", f"trainer.accelerator={device}", f"run_dir={folder}/run"),
            f"trainer.precision={precision}",
            *([f"env.kwargs.device={device}"] if in_torch else []),
            *workload.settings,
        ]
        train(load([], overrides), [laps, *callbacks])
    return laps.times


class Agent(nn.Module):
    """Two 64x64 tanh networks, or for images one Nature CNN with two heads."""

    def __init__(self, observations: spaces.Box, actions: gymnasium.Space) -> None:
        super().__init__()
        self.discrete = isinstance(actions, spaces.Discrete)
        count = int(actions.n) if isinstance(actions, spaces.Discrete) else int(np.prod(actions.shape or ()))
        self.images = len(observations.shape) == 3
        self.log_std = nn.Parameter(torch.zeros(count))
        if self.images:
            self.trunk: nn.Module = nn.Sequential(
                *(nn.Conv2d(observations.shape[0], 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(512), nn.ReLU()),
            )
            self.actor, self.critic = nn.Linear(512, count), nn.Linear(512, 1)
            return
        inputs = int(np.prod(observations.shape))
        self.trunk = nn.Flatten()
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
            for outputs in (count, 1)
        )

    def forward(self, x: torch.Tensor, action: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return actions, their log-probabilities, entropies and values."""
        features = self.trunk(x.float() / 255.0 if self.images else x.float())
        outputs = self.actor(features)
        distribution: Any = Categorical(logits=outputs)
        if not self.discrete:
            distribution = Independent(Normal(outputs, self.log_std.exp().expand_as(outputs)), 1)
        action = distribution.sample() if action is None else action
        return action, distribution.log_prob(action), distribution.entropy(), self.critic(features).squeeze(1)


def loop(workload: Workload, device: str, seed: int) -> list[float]:
    """Train with an eager loop in the manner of CleanRL and return when each iteration ended."""
    torch.manual_seed(seed)
    envs = make_vector_env(EnvConfig(workload.env_id, workload.num_envs, stagger=False))
    observation, _ = envs.reset(seed=seed)
    assert isinstance(envs.single_observation_space, spaces.Box)
    agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)
    seen = torch.as_tensor(observation, device=device).clone()  # the environment writes over its own
    agent(seen)
    optimizer = torch.optim.Adam(agent.parameters(), 2e-3, eps=1e-5)
    times = []
    for _ in range(WARM_UP + workload.iterations):
        steps: list[tuple[torch.Tensor, ...]] = []
        for _ in range(workload.num_steps):
            with torch.no_grad():
                action, log_prob, _, value = agent(seen)
            observation, reward, terminations, truncations, _ = envs.step(action.cpu().numpy())
            ended = torch.as_tensor(terminations | truncations, device=device).float()
            steps.append((seen, action, log_prob, value, torch.as_tensor(reward, device=device).float(), ended))
            seen = torch.as_tensor(observation, device=device).clone()  # the environment writes over its own
        observations, actions, log_probs, values, rewards, ends = (torch.stack(x) for x in zip(*steps, strict=True))
        with torch.no_grad():
            following, last = agent(seen)[3], torch.zeros_like(values[0])
            advantages = torch.zeros_like(values)
            for t in reversed(range(workload.num_steps)):
                alive = 1.0 - ends[t]
                last = rewards[t] + 0.99 * following * alive - values[t] + 0.99 * 0.95 * alive * last
                advantages[t], following = last, values[t]
        flat = [x.flatten(0, 1) for x in (observations, actions, log_probs, advantages, advantages + values)]
        for _ in range(workload.epochs):
            for rows in torch.randperm(workload.size, device=device).chunk(workload.minibatches):
                x, action, old, advantage, target = (f[rows] for f in flat)
                _, log_prob, entropy, value = agent(x, action)
                ratio = (log_prob - old).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                loss = 0.5 * (value - target).square().mean() - surrogate - 0.01 * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        times.append(now())
    envs.close()
    return times


def race(workload: Workload, device: str, repeats: int) -> dict[str, list[float]]:
    """Return environment steps per second of every run, by system."""
    systems: dict[str, Callable[[int], list[float]]] = {
        "lightning_ppo, eager": lambda seed: ours(workload, device, seed, False),
        "lightning_ppo, compile=true": lambda seed: ours(workload, device, seed, True),
    }
    if workload.settings == IMAGES:
        name = "lightning_ppo, compile=true trainer.precision=bf16-mixed"
        systems[name] = lambda seed: ours(workload, device, seed, True, "bf16-mixed")
    if workload.env_id != CARTPOLE:
        systems["eager loop, CleanRL-style"] = lambda seed: loop(workload, device, seed)
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for seed in range(1, repeats + 1):
        for name, run in systems.items():
            times = run(seed)
            seconds = (times[-1] - times[WARM_UP - 1]) / (len(times) - WARM_UP)
            rates[name].append(workload.size / seconds)
    return rates


def table(results: Sequence[tuple[Workload, dict[str, list[float]]]]) -> list[str]:
    """Return medians and ranges as lines of Markdown."""
    lines = ["| workload | system | env steps/s, median (range) | of LeanRL's on an H100 |", "|---|---|---|---|"]
    for workload, rates in results:
        for name, found in rates.items():
            median = statistics.median(found)
            against = f"{median / workload.lean_rl:.2f}x of {workload.lean_rl:,}" if workload.lean_rl else ""
            lines.append(
                f"| {workload.label} | {name} | {median:,.0f} ({min(found):,.0f} to {max(found):,.0f}) | {against} |"
            )
    return lines


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", type=int, choices=range(len(WORKLOADS)), help="numbers, from 0")
    parser.add_argument("--tf32", action="store_true", help="let float32 products round their factors, in all systems")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; --device cpu runs on the CPU")
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = options.tf32
    if options.threads:
        torch.set_num_threads(options.threads)
        # train.py leaves the number of threads alone where this is set
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    chosen = [WORKLOADS[n] for n in options.workloads] if options.workloads else WORKLOADS
    results = []
    for workload in TINY if options.smoke else chosen:
        results.append((workload, race(workload, options.device, 1 if options.smoke else options.repeats)))
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print("\n".join([*table(results), "", f"{name}, torch {torch.__version__}, TF32 {options.tf32}"]))


if __name__ == "__main__":
    main()
