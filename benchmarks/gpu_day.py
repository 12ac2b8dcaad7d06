"""All that is worth knowing of a GPU in eight minutes: correct first, then fast, in the order of worth.

    python benchmarks/gpu_day.py                    on the GPU
    python benchmarks/gpu_day.py --device cpu --dry     does everything work? tiny sizes, figures mean nothing

Each part is a process with a time limit of its own, and writes each result when it is known: a line of
`benchmarks/runs/gpu_day/rows.jsonl`, which `--out` puts elsewhere. A part that fails is a row, too, and the others go
on.
No network is needed: wheels in `benchmarks/wheels` are installed into the folder of the results, for these processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GPU_TESTS = ("tests/speed/test_graphs.py", "tests/speed/test_flat.py", "tests/collection/test_device_envs.py")
"""Tests that run on a GPU where there is one, or whose arithmetic is another one there."""
PRECISIONS = "32-true", "bf16-mixed", "16-mixed"
NO_DIVERGENCE = 1e-6
"""KL divergence of a policy from itself, up to rounding: acting and learning run in one precision."""


class Day:
    """What the parts need to know, and where results go.

    Attributes:
        device: `cuda` or `cpu`.
        dry: Whether sizes are tiny.
        out: Folder of the results.
        part: Name of the part that runs.
    """

    def __init__(self, device: str, dry: bool, out: Path, part: str) -> None:
        self.device, self.dry, self.out, self.part = device, dry, out, part

    @property
    def rows(self) -> Path:
        """The file of results."""
        return self.out / "rows.jsonl"

    def tell(self, what: str, value: Any, unit: str = "") -> None:
        """Write a result."""
        row = {"part": self.part, "what": what, "value": value, "unit": unit}
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{self.part}: {what}: {f'{value:,.0f}' if unit == 'steps/s' else value} {unit}".strip())


def tests(day: Day) -> None:
    """Run the tests that take other ways on a GPU."""
    chosen = GPU_TESTS[:1] if day.dry else GPU_TESTS
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *chosen, *(["-k", "replays"] if day.dry else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (day.out / "tests.txt").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    day.tell("exit code of pytest", done.returncode)
    if done.returncode:
        raise SystemExit(f"tests failed, see tests.txt: {''.join(last)}")


def _fit(
    day: Day, env: str, compiled: bool, iterations: int, model: Mapping[str, Any] | None = None, **trainer: Any
) -> Any:
    """Train from seed 1 with environments in torch, and return the module and its Trainer."""
    import pytorch_lightning as pl

    from lightning_ppo import PPO, RolloutDataModule

    path = trainer.pop("ckpt_path", None)
    pl.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        f"lightning_ppo.envs.torch_envs:{env}",
        num_envs=8 if day.dry else 256,
        num_steps=16,
        rollouts_per_epoch=iterations,
        env_kwargs={"device": day.device},
    )
    settings = {"update": {"epochs": 2, "minibatch_size": data.num_envs * 4}} | dict(model or {})
    module = PPO(data.observation_space, data.action_space, compile=compiled, **settings)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    quiet |= {"num_sanity_val_steps": 0, "accelerator": day.device, "devices": 1, "enable_checkpointing": False}
    runs = pl.Trainer(**({"max_epochs": 1} | quiet | trainer))
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    runs.fit(module, data, ckpt_path=path, weights_only=True if path else None)
    return module, runs


def ratio(day: Day) -> None:
    """Check that a policy does not differ from itself: the first minibatch of a rollout has no divergence."""
    size = 16 * (8 if day.dry else 256)
    for precision in PRECISIONS:
        if day.device == "cpu" and precision == "16-mixed":
            continue  # Lightning has it on GPUs only
        for compiled in (False, True):
            for env in ("TorchCartPole", "TorchPendulum"):
                update = {"update": {"epochs": 1, "minibatch_size": size}}
                _, trainer = _fit(day, env, compiled, 2, update, precision=precision)
                found = float(trainer.callback_metrics["update/approximate_kl"])
                how = "compiled" if compiled else "eager"
                day.tell(f"{env}, {precision}, {how}: KL of the first minibatch", found)
                assert abs(found) <= NO_DIVERGENCE, f"the ratio is not 1: {env}, {precision}, {how}"


def graphs(day: Day) -> None:
    """Check that compiled code and CUDA graphs are used, with every kind of network and precision."""
    for policy in ({}, {"shared_trunk": True}, {"core": "lstm", "core_size": 16}):
        for precision in ("32-true", "bf16-mixed"):
            module, _ = _fit(day, "TorchPendulum", True, 3, {"policy": policy}, precision=precision)
            # a fallback is a warning, which is an error here
            assert module.compile_seconds > 0.0, f"{policy}, {precision}: nothing was compiled"
            day.tell(f"{policy or 'two networks'}, {precision}", "compiled, no fallback")


def cartpoles(day: Day) -> None:
    """Time thousands of CartPoles in torch, with two networks and with one trunk."""
    from benchmarks import gpu

    for count in (16,) if day.dry else (4096, 16384, 65536):
        for settings in ((), gpu.LEAN):
            iterations = 1 if day.dry else max(5, 81920 // count)
            workload = gpu.Workload(gpu.CARTPOLE, count, 32, 4, 4, iterations, None, settings)
            _time(day, workload, f"{count:,} CartPoles, {'one trunk' if settings else 'two networks'}")


def loops(day: Day) -> None:
    """Time HalfCheetah and Breakout beside the eager loop."""
    from benchmarks import gpu

    for workload in gpu.TINY[:1] if day.dry else [replace(w, iterations=5) for w in gpu.WORKLOADS[:2]]:
        times = gpu.loop(workload, day.device, 1)
        day.tell(f"{workload.label}: eager loop", _rate(workload, times), "steps/s")
        _time(day, workload, f"{workload.label}: lightning_ppo, compiled")


def _time(day: Day, workload: Any, label: str) -> None:
    from benchmarks import gpu

    day.tell(label, _rate(workload, gpu.ours(workload, day.device, 1, True)), "steps/s")


def _rate(workload: Any, times: list[float]) -> float:
    from benchmarks.gpu import WARM_UP

    return workload.size * (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1])


def profile(day: Day) -> None:
    """Show where the time of 4,096 CartPoles goes: kernels, launches, and the share in which the device works."""
    import pytorch_lightning as pl
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    from benchmarks import gpu

    workload = gpu.Workload(gpu.CARTPOLE, 16 if day.dry else 4096, 32, 4, 4, 2)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if day.device == "cuda" else [])]
    profiler, seconds = watch(activities=kinds), [0.0]

    class Watch(pl.Callback):
        """Profiles the iterations after the warm-up."""

        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *arguments: Any) -> None:
            """Begin after the warm-up, end with the training."""
            if module.iterations == gpu.WARM_UP:
                profiler.start()
                seconds[0] = gpu.now()
            if module.iterations == gpu.WARM_UP + workload.iterations:
                seconds[0] = gpu.now() - seconds[0]
                profiler.stop()

    gpu.ours(workload, day.device, 1, True, callbacks=[Watch()])
    events = profiler.key_averages()
    by = "self_device_time_total" if day.device == "cuda" else "self_cpu_time_total"
    (day.out / "profile.txt").write_text(events.table(sort_by=by, row_limit=40))
    launches = sum(e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key)
    busy = sum(e.self_device_time_total for e in events if str(e.device_type).endswith("CUDA"))
    day.tell("launches of an iteration", launches / workload.iterations)
    day.tell("share of the time in which kernels run", busy / 1e6 / seconds[0])
    for event in sorted(events, key=lambda e: -getattr(e, by))[:8]:
        day.tell(f"{event.key[:60]}, {event.count} calls", getattr(event, by) / workload.iterations, "us an iteration")


def exact(day: Day) -> None:
    """Say whether the same seed gives the same bits, and whether resuming does."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    for compiled in (False, True):
        for strict in (False, True):
            how = f"{'compiled' if compiled else 'eager'}{', trainer.deterministic' if strict else ''}"
            given = {"deterministic": strict, "max_epochs": 2}
            with tempfile.TemporaryDirectory() as folder:
                keep = {"save_top_k": -1, "save_on_train_epoch_end": True}
                first, _ = _fit(
                    day,
                    "TorchPendulum",
                    compiled,
                    2,
                    **given,
                    enable_checkpointing=True,
                    callbacks=[ModelCheckpoint(folder, "{epoch}", **keep)],
                )
                second, _ = _fit(day, "TorchPendulum", compiled, 2, **given)
                day.tell(f"{how}: same seed, same bits", _same(first, second))
                resumed, _ = _fit(day, "TorchPendulum", compiled, 2, **given, ckpt_path=f"{folder}/epoch=0.ckpt")
            day.tell(f"{how}: resumed, same bits", _same(first, resumed))


def _same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(ours.cpu(), theirs.cpu()) for ours, theirs in pairs)


PARTS: dict[str, tuple[Callable[[Day], None], int]] = {
    "tests": (tests, 100),
    "ratio": (ratio, 90),
    "graphs": (graphs, 80),
    "cartpoles": (cartpoles, 120),
    "exact": (exact, 60),
    "loops": (loops, 100),
    "profile": (profile, 60),
}
"""The parts in the order of worth, and the seconds that each may take."""


def _install(out: Path) -> str:
    """Install the wheels beside this script for the parts, and return the import path of these."""
    wheels = sorted((ROOT / "benchmarks" / "wheels").glob("*.whl"))
    packages = out / "packages"
    if wheels and not packages.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(packages)]
        subprocess.run([*command, *map(str, wheels)], check=True)
    known = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), str(packages), *([known] if known else [])])


def _run(name: str, day: Day, seconds: float, path: str) -> bool:
    """Run a part in a process of its own and return whether it ended well."""
    log = day.out / f"{name}.log"
    command = [sys.executable, __file__, "--part", name, "--device", day.device, "--out", str(day.out)]
    with log.open("w") as file:
        try:
            code = subprocess.run(
                [*command, *(["--dry"] if day.dry else [])],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                env=os.environ | {"PYTHONPATH": path},
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {seconds:.0f} s"
    if code:
        last = log.read_text().strip().splitlines()[-1:] or [""]
        day.tell(f"failed ({code})", last[0])
    return not code


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dry", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "runs" / "gpu_day")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; --device cpu --dry runs everything on the CPU")
    if options.part:
        # a fallback is a failure here
        warnings.filterwarnings("error", message="compile:")
        PARTS[options.part][0](Day(options.device, options.dry, options.out, options.part))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path, ended = _install(options.out), time.monotonic() + options.seconds
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    Day(options.device, options.dry, options.out, "machine").tell(machine, f"torch {torch.__version__}")
    failed = []
    for name in options.only:
        left = ended - time.monotonic()
        day = Day(options.device, options.dry, options.out, name)
        if left < 5 or not _run(name, day, left if options.dry else min(left, PARTS[name][1]), path):
            failed.append(name)
    if failed:
        raise SystemExit(f"not done: {', '.join(failed)}; see {options.out}")


if __name__ == "__main__":
    main()
