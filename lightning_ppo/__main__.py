"""`python -m lightning_ppo COMMAND`, the same as `lightning-ppo COMMAND`."""

import sys

from lightning_ppo.cli import main

if __name__ == "__main__":
    sys.exit(main())
