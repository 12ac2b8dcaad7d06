"""`export CKPT`: one file that acts without this package."""

import argparse

from lightning_ppo.support.errors import TRUST_HELP, ConfigError

NAME = "export"
HELP = "write a trained agent as one file that acts without this package"
EXAMPLES = (
    ("export runs/mine/checkpoints/best.ckpt", "best.onnx beside it, for ONNX Runtime"),
    ("export CKPT --format torch --output agent.pt2", "for torch.export.load"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint that training has written")
    parser.add_argument(
        "--format", default="onnx", help="what runs it: onnx, torch, or the class path of an Exporter (default: onnx)"
    )
    parser.add_argument("--output", metavar="FILE", help="default: beside the checkpoint, with the format's ending")
    parser.add_argument(
        "--action-masks",
        action=argparse.BooleanOptionalAction,
        help="take masks of legal actions as an input (default: if it was trained with them)",
    )
    parser.add_argument("--trust", metavar="NAME", action="append", default=[], help=TRUST_HELP)


def run(options: argparse.Namespace) -> int:
    """Export, compare with the checkpoint, and tell."""
    import logging
    from pathlib import Path

    from lightning_ppo.interop.export import EXPORTERS, Deployed, export, greatest_difference
    from lightning_ppo.update.ppo import PPO

    ending = EXPORTERS.load(options.format).ending
    target = Path(options.output or Path(options.checkpoint).with_suffix(ending))
    if target.suffix != ending:
        raise ConfigError(f"--output: expected a name that ends in {ending}, got {target}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names optional packages that nothing here needs
    model = PPO.load_from_checkpoint(options.checkpoint, map_location="cpu", trust=options.trust)
    masked = model.action_masks if options.action_masks is None else options.action_masks
    deployed = Deployed(model.policy, model.observation_space, model.action_space, masked)
    function = export(deployed, target, options.format)
    difference = greatest_difference(deployed, function)
    print(f"{target}: {', '.join(deployed.inputs)} -> {', '.join(deployed.outputs)}")
    print(f"greatest difference from the checkpoint on 1,000 random observations: {difference:.2g}")
    return 0
