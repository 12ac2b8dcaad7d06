"""`configs`: the configs that `train` finds by bare name."""

import argparse

NAME = "configs"
HELP = "list the configs that `train` finds by bare name"
EXAMPLES = (("configs", "one line each: name, environment, budget"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the command takes no arguments."""


def run(options: argparse.Namespace) -> int:
    """List them."""
    from lightning_ppo.settings import named_configs
    from lightning_ppo.settings.loading import load
    from lightning_ppo.support.program import columns

    rows = []
    for name in named_configs.names():
        config = load([named_configs.find(name)])
        rows.append((name, config.env.id, f"{config.total_env_steps:,} steps"))
    print(columns(rows))
    print(f"\nThey are in {named_configs.FOLDER}. A file of the same name in the current folder wins.")
    return 0
