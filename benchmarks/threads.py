"""What threads of one operation cost while they wait, with the second core free and with another program on it.

The Nature CNN computes the values of 8 observations, as collecting does. Every line is a process of its own, all take
turns. Processor time is the figure to compare: it is that of all threads, and other programs change it little.

    python benchmarks/threads.py --rounds 3
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

VARIANTS: dict[str, tuple[int, dict[str, str]]] = {
    "one thread": (1, {}),
    "two threads, sleeping (the default here)": (2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "two threads, waiting for 1,000 rounds": (2, {"GOMP_SPINCOUNT": "1000"}),
    "two threads, as OpenMP does by itself": (2, {}),
}
WARM_UP = 5


def measure(threads: int, seconds: float) -> dict[str, float]:
    """Return what one pass through the network takes in this process."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    network = nn.Sequential(
        *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 1)),
    )
    images = torch.rand(8, 4, 84, 84)
    with torch.no_grad():
        for _ in range(WARM_UP):
            network(images)
        before, processor, started, passes = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), _now(), 0
        while _now() - started < seconds:
            network(images)
            passes += 1
    wall, processor = _now() - started, time.process_time() - processor
    after = resource.getrusage(resource.RUSAGE_SELF)
    switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
    return {"per second": passes / wall, "ms of processor": 1e3 * processor / passes, "switches": switches / passes}


_now = time.perf_counter


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: 4)")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        print(json.dumps(measure(options.threads, options.seconds)))
        return
    found: dict[tuple[bool, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for busy in (False, True):
            for name, (threads, variables) in VARIANTS.items():
                neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
                command = [sys.executable, __file__, "--threads", str(threads), "--seconds", str(options.seconds)]
                try:
                    said = subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE)
                finally:
                    if neighbour is not None:
                        neighbour.kill()
                        neighbour.wait()
                found.setdefault((busy, name), []).append(json.loads(said.stdout))
    print("| second core | | passes per second | ms of processor time per pass | context switches per pass |")
    print("|---|---|---|---|---|")
    for (busy, name), rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        figures = f"{middle['per second']:,.0f} | {middle['ms of processor']:.2f} | {middle['switches']:.0f}"
        print(f"| {'busy' if busy else 'free'} | {name} | {figures} |")


if __name__ == "__main__":
    main()
