"""`python -m lightning_ppo COMMAND`: what there is to do besides training."""

import sys

from lightning_ppo.cli import main

if __name__ == "__main__":
    sys.exit(main())
