"""Export an agent for every pair of observation, action, core and masks, and compare what it does with the agent.

`python tests/export_matrix.py --format torch` takes a second or two for each; `--part 1/2` does one half.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.test_export import check
from tests.test_spaces import pairs


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
