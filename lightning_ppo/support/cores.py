"""How many processor cores this process may use."""

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of containers."""


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota())))


def _quota() -> float:
    """Return how many cores' time a container may take, infinity where nothing limits it."""
    for group in (_own_group(), ""):
        limit = _read(GROUPS / group / "cpu.max").split()
        if not limit:  # version 1 of Linux's control groups
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            limit = [word for name in files for word in _read(GROUPS / "cpu" / group / name).split()]
        if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit() and int(limit[1]):
            return int(limit[0]) / int(limit[1])
    return math.inf


def _own_group() -> str:
    lines = [line.split(":", 2) for line in _read(Path("/proc/self/cgroup")).splitlines()]
    found = [path for _, kinds, path in lines if kinds == "" or "cpu" in kinds.split(",")]
    return found[-1].strip("/") if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
