"""Export an agent for every pair of observation, action, core and masks, and compare what it does with the agent.

`python tests/kit/export_matrix.py --format torch` takes a second or two for each; `--part 1/2` does one half.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightning_ppo.interop.export import EXPORTERS, Deployed, export
from tests.kit.spaces import ACTIONS, OBSERVATIONS, agent_of, choices_of, pairs, random_masks


def check(observation: str, action: str, core: str | None, masked: bool, kind: str, folder: Path) -> None:
    """Raise AssertionError if an exported agent acts otherwise than the agent."""
    observation_space, (action_space, name) = OBSERVATIONS[observation], ACTIONS[action]
    policy = agent_of(observation_space, action_space, name, gain=30.0, core=core, core_size=4)
    deployed = Deployed(policy, observation_space, action_space, masked)
    function = export(deployed, folder / f"agent{EXPORTERS.load(kind).ending}", kind)
    rng = np.random.default_rng(0)
    inputs = deployed.sample(9, rng)
    if masked:
        inputs["action_masks"] = torch.from_numpy(random_masks(choices_of(action_space), 9, rng))
    if core:
        inputs["states"] = torch.randn(9, policy.state_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = deployed.named(inputs)
    torch.testing.assert_close(function(inputs), expected, atol=1e-5, rtol=1e-5)


def main() -> int:
    """Return 1 if any pair failed, and print which."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=["torch", "onnx"], default="torch")
    parser.add_argument("--part", default="1/1", help="which part of how many")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    cases, failures = [*pairs()][part - 1 :: parts], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            try:
                check(*case, options.format, Path(folder))
            except Exception as error:
                failures += 1
                print(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
    print(f"{len(cases) - failures} of {len(cases)} pairs act alike as {options.format}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
