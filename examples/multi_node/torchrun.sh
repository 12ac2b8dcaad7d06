#!/bin/bash
# Training on two nodes of 8 GPUs with torchrun: run examples/multi_node/torchrun.sh on each node, from any folder that all
# of them see. node0 is the name of the node where the processes meet, as every node resolves it; its port must be free.
#
# Of the numbers two must agree, and a run whose numbers do not says so and ends at once:
#   --nnodes = trainer.num_nodes, --nproc_per_node = trainer.devices.
# run_dir is on a file system that all nodes see; docs/scaling.md has the rest.
#
# One machine needs no launcher: lightning-ppo train trainer.devices=2 trainer.strategy=ddp
set -euo pipefail

# each life of the processes meets at a new store; a restarted one may otherwise read the address of a dead one
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# when a process dies, torchrun ends the others and starts all of them again, up to three times; resume=auto makes them
# go on where the last checkpoint was written
torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=node0:29400 --rdzv_id=cheetah --max-restarts=3 \
  -m lightning_ppo train halfcheetah trainer.num_nodes=2 trainer.devices=8 trainer.accelerator=gpu trainer.strategy=ddp \
  run_dir=runs/cheetah resume=auto
