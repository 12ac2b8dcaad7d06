"""Memory and time of an optimizer step of a transformer policy, beside plain torch's loop of the same arithmetic.

    python benchmarks/memory.py                                     # two small sizes: bytes per parameter and per row
    python benchmarks/memory.py --widths 512 --layers 15 --rows 64  # 47 million parameters, memory and time

Each figure is of a process of its own: how far the peak of its resident memory lies above where it stood before the
policy was built. Bytes per parameter are the slope between the widths, so that what does not grow with the policy
cancels; bytes per row are the slope between the sizes of a minibatch.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.update.objectives import clipped_surrogate_loss

NUM_ENVS = 8
STEPS = 4
"""Optimizer steps of an iteration, and of the loop in plain torch."""
ITERATIONS = 2


class Transformer(nn.Module):
    """An encoder that makes a token of each number of an observation.

    Args:
        space: Of the observations, vectors.
        width: Of the layers.
        layers: How many there are.
    """

    def __init__(self, space: gymnasium.spaces.Box, width: int, layers: int) -> None:
        super().__init__()
        self.num_features = width
        self.scale = nn.Parameter(torch.randn(space.shape[0], width))
        self.shift = nn.Parameter(torch.randn(space.shape[0], width))
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, F) of observations (B, K)."""
        return self.encoder(x.unsqueeze(-1) * self.scale + self.shift).mean(1)


def resident() -> float:
    """Return the resident memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def build(width: int, layers: int, rows: int, **update: Any) -> tuple[PPO, RolloutDataModule]:
    """Return an agent and data whose iterations have STEPS minibatches of so many rows."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pl.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "CartPole-v1",
        num_envs=NUM_ENVS,
        num_steps=max(1, rows * STEPS // NUM_ENVS),
        rollouts_per_epoch=1,
        backend="sync",
        evaluation={"episodes": 0},
    )
    encoder = {"class_path": Transformer, "init_args": {"width": width, "layers": layers}}
    model = PPO(
        data.observation_space,
        data.action_space,
        update={"epochs": 1, "minibatch_size": rows, **update},
        optimizer={"learning_rate": 1e-4},
        policy={"encoder": encoder, "hidden_sizes": [], "shared_trunk": True},
        compile=False,
    )
    return model, data


def plain(width: int, layers: int, rows: int) -> dict[str, float]:
    """Take the steps in plain torch, on random data."""
    model, data = build(width, layers, rows)
    policy = model.policy
    optimizer = torch.optim.Adam(policy.parameters(), 1e-4, fused=True)
    observations = torch.randn(rows, *data.observation_space.shape)
    actions, advantages, returns = torch.randint(2, (rows,)), torch.randn(rows), torch.randn(rows)
    seconds = []
    for _ in range(ITERATIONS * STEPS):
        started = time.perf_counter()
        outputs, values, _ = policy.network(policy.inputs(observations), None, None)
        distribution = policy.head.parameters_of(outputs)
        log_probs = policy.head.log_prob(distribution, actions)
        losses = clipped_surrogate_loss(log_probs - log_probs.detach(), advantages, 0.2)
        losses = losses + 0.25 * (values - returns).square()
        optimizer.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds)}


class Seconds(pl.Callback):
    """Times the updates, without collecting."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep the seconds of a step."""
        self.steps.append((time.perf_counter() - self._started) / STEPS)


def fitted(width: int, layers: int, rows: int, strategy: str = "auto", **update: Any) -> dict[str, float]:
    """Take the steps by `fit`."""
    model, data = build(width, layers, rows, **update)
    timing = Seconds()
    trainer = pl.Trainer(
        max_epochs=ITERATIONS,
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[timing],
    )
    trainer.fit(model, data)
    return {"seconds": min(timing.steps)}


WAYS: dict[str, Callable[..., dict[str, float]]] = {
    "plain torch": plain,
    "one device": fitted,
    "one device, micro-batches of 8 rows": lambda *sizes: fitted(*sizes, micro_batch_size=8),
    "ddp, a rank of two": lambda *sizes: fitted(*sizes, strategy="ddp"),
    "fsdp2, a rank of two": lambda *sizes: fitted(*sizes, strategy="fsdp2"),
}


def measure(way: str, width: int, layers: int, rows: int) -> dict[str, float]:
    """Return parameters, the peak in MB and seconds a step, measured in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--widths", str(width), "--layers", str(layers)]
    command += ["--rows", str(rows)]
    # what is freed goes back to the system, so that the peak is one of what is held
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(lines[0])


def child(way: str, width: int, layers: int, rows: int) -> None:
    """Print what one way takes."""
    gymnasium.make("CartPole-v1").close()
    if "fsdp2" in way:
        importlib.import_module("torch.distributed.fsdp")
    build(8, 1, 8)  # the first agent brings more along than itself
    before = resident()
    found = WAYS[way](width, layers, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    parameters = sum(p.numel() for p in build(width, layers, rows)[0].policy.parameters())
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(json.dumps({"parameters": parameters, "megabytes": peak - before, **found}), flush=True)


def table(widths: Sequence[int], layers: int, rows: int, ways: Sequence[str]) -> str:
    """Return the table of all ways."""
    lines = [
        "| | parameters | MB | ms a step | bytes per parameter | bytes per row |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for way in ways:
        found = [measure(way, width, layers, rows) for width in widths]
        last = found[-1]
        slopes = ["", ""]
        if len(found) > 1:
            first, more = found[0], measure(way, widths[0], layers, 8 * rows)
            grown = (last["megabytes"] - first["megabytes"]) * 1e6 / (last["parameters"] - first["parameters"])
            slopes = [f"{grown:.1f}", f"{(more['megabytes'] - first['megabytes']) * 1e6 / 7 / rows:,.0f}"]
        cells = [way, f"{last['parameters']:,}", f"{last['megabytes']:,.0f}", f"{last['seconds'] * 1e3:,.0f}", *slopes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[256, 512], help="of the transformer (default: 256 512)"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=16, help="of a minibatch (default: 16)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        child(given.way, given.widths[0], given.layers, given.rows)
    else:
        print(table(given.widths, given.layers, given.rows, given.ways))


if __name__ == "__main__":
    main()
