"""Train an agent from a clone: the same as the installed command `lightning-ppo train`."""

import sys

from lightning_ppo.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
