"""One rank of a data-parallel training whose data does not depend on how many ranks share it.

Environments are seeded by global index, action noise is a function of step and global index, and the minibatches of
the ranks together are the minibatches of one process. What is left is what the library does with it.
"""

import os
from functools import partial

import gymnasium
import pytorch_lightning as pl
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection import stream
from lightning_ppo.collection.collector import Collector
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.networks import CORES
from lightning_ppo.support import distributed
from lightning_ppo.update import minibatch_update as optimization
from lightning_ppo.update import shuffle
from lightning_ppo.update.loss_terms import LossTerm

ENVS, STEPS, MINIBATCHES = 8, 16, 4
WORLD, RANK = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
OWN = ENVS // WORLD


def shared_noise(collector: Collector) -> None:
    """Draw the noise of all environments on every rank, and keep the rank's own part."""
    draw, generator = collector.policy.head.noise, torch.Generator().manual_seed(11)

    def noise(shape, _):
        return draw((shape[0], ENVS), generator)[:, RANK * OWN : (RANK + 1) * OWN].contiguous()

    collector.policy.head.noise = noise


def shared_minibatches():
    """Return a shuffle under which rank r's minibatches are the part of one process's that lies in its environments.

    Row (t, n) of a rollout whose sequences have L steps is number ((t // L) x N + n) x L + t % L.
    """
    generators = [torch.Generator().manual_seed(100 + block) for block in range(2)]
    half = ENVS // 2

    def shuffle(size, minibatch_size, generator, sequence_length):
        parts = []
        for block, own in enumerate(generators):
            length = sequence_length
            sequences = torch.randperm(STEPS // length * half, generator=own)
            if WORLD == 1:
                sequences = sequences // half * ENVS + sequences % half + block * half
            rows = sequences.unsqueeze(1) * length + torch.arange(length)
            parts.append(rows.view(MINIBATCHES, -1))
        return parts[RANK] if WORLD == 2 else torch.cat(parts, 1)

    return shuffle


class Blocks(nn.Module):
    """An encoder of several blocks of one kind, as transformers are."""

    def __init__(self, space: gymnasium.Space) -> None:
        super().__init__()
        self.num_features = 6
        self.first = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return x


class Scaled(LossTerm):
    """Has a parameter of its own."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__(policy)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, policy, minibatch, now):
        return (self.scale * now.values - minibatch.returns).square() + policy.value(minibatch.observations).square()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor, gathered if ranks share it out."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


class Shared(RolloutDataModule):
    def train_dataloader(self):
        fresh = self._stream is None
        loader = super().train_dataloader()
        if fresh:
            shared_noise(loader.collector)
        return loader


def main(out: str, env: str, control: str = "", precision: str = "32-true") -> None:
    torch.set_num_threads(1)
    pl.seed_everything(5, verbose=False)
    compiled, trpo = control == "compiled", control == "trpo"
    core = next((name for name in CORES if name in control), None)
    sharded, blocks = "sharded" in control, "blocks" in control
    if control not in ("apart", "overlap", "groups"):
        shuffle.shuffled_indices = shared_minibatches()
    if control == "own advantages":
        stream.sum_over_ranks = lambda tensor: tensor
    if control == "own statistics":
        merged = ActorCritic.update_statistics
        ActorCritic.update_statistics = lambda self, rollout, _: merged(self, rollout, lambda tensor: tensor)
    if control == "gradient sum":
        optimization.average_in_place = lambda tensor: tensor.copy_(distributed.sum_over_ranks(tensor))
    if control == "own rows":
        mean = shuffle.mean_over_ranks
        shuffle.mean_over_ranks = lambda tensor: tensor if len(tensor) == MINIBATCHES else mean(tensor)
    source: str | VectorEnv = env
    if control in (
        "filler rows",
        "own rows",
        "gradient sum",
        "pieces",
        "pieces, plain",
        "sharded, blocks, pieces",
        "blocks, pieces",
    ):  # as many as episodes end, so a number of its own on each rank
        source = SyncVectorEnv([partial(gymnasium.make, env)] * OWN, autoreset_mode=AutoresetMode.NEXT_STEP)
    data_class = RolloutDataModule if control in ("apart", "overlap", "groups") else Shared
    data = data_class(
        source,
        num_envs=OWN,
        num_steps=STEPS,
        overlap=control == "overlap",
        processes=2 if control == "groups" else 1,
        backend="sync",
        rollouts_per_epoch=5,
        seed=5,
        evaluation={"episodes": 3 if source is env else 0},
    )
    mirror = {"observation_indices": [0, 1, 2, 3], "observation_signs": [-1] * 4, "action_indices": [1, 0]}
    terms = {
        "CartPole-v1": {"class_path": "lightning_ppo.update.loss_terms.MirrorSymmetry", "init_args": mirror},
        "Pendulum-v1": {"class_path": "lightning_ppo.update.loss_terms.DualClip", "init_args": {"bound": 1.001}},
    }
    model = PPO(
        data.observation_space,
        data.action_space,
        objective=control if control in ("trpo", "adaptive_kl") else "clip",
        update={
            "epochs": 2,
            "minibatch_size": OWN * STEPS // MINIBATCHES,
            "target_kl": None if trpo else 0.05,
            "sequence_length": 4 if core else None,
            "micro_batch_size": 8 if "pieces" in control and WORLD > 1 else None,
            "trust_region": {"max_kl": 0.005},
        },
        optimizer={"learning_rate": {"kind": "adaptive_kl", "start": 1e-3, "target_kl": 0.005}},
        policy={"core": core} if core else {"encoder": f"{__name__}.Blocks"} if blocks else None,
        compile=compiled,
        plain=control in ("plain", "pieces, plain"),
        loss_terms=[] if trpo or core else [f"{__name__}.Scaled" if blocks else terms[env]],
    )
    states, metrics, actions = [], [], []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if sharded and WORLD > 1:
                assert all(isinstance(p, DTensor) for p in pl_module.policy.parameters())
            states.append({k: whole(v) for k, v in pl_module.state_dict().items()})
            metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("time/")})
            actions.append(batch.actions.clone())

    epochs = 4 if control in ("", *CORES, "trpo", "adaptive_kl", "apart") else 1
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=min(2, epochs),
        precision=precision,
        accelerator="cpu",
        devices=WORLD,
        strategy="auto" if WORLD == 1 else "fsdp2" if sharded else "ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Record()],
    )
    trainer.fit(model, data)
    final = {k: float(v) for k, v in trainer.callback_metrics.items()}
    path = f"{out}.{RANK}"
    torch.save({"states": states, "metrics": metrics, "actions": actions, "final": final}, path)
