"""Train on two "hosts": network namespaces on this machine, joined by a virtual cable, with torchrun on each.

`python tests/kit/two_hosts.py RUN_DIR [key=value ...]` trains configs/halfcheetah.yaml. Exits with 77 and says why
where namespaces are not permitted.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NETWORK = """
mount -t tmpfs tmpfs /run
ip netns add one
ip netns add two
ip link add cable1 netns one type veth peer name cable2 netns two
for host in one two; do ip -n $host link set lo up; done
ip -n one address add 10.77.0.1/24 dev cable1
ip -n two address add 10.77.0.2/24 dev cable2
ip -n one link set cable1 up
ip -n two link set cable2 up
"""


def shell(script: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)


def inside(arguments: list[str]) -> int:
    """Build the network, train on both hosts, and return the exit code."""
    built = shell(NETWORK)
    if built.returncode:
        print(f"skipped: no network namespaces here: {built.stderr.strip()}")
        return SKIPPED
    hosts = []
    for rank, (name, interface) in enumerate((("one", "cable1"), ("two", "cable2"))):
        launcher = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:29400"]
        # both have this machine's name, by which torchrun would tell them apart
        launcher += [f"--rdzv_conf=is_host={int(rank == 0)}", f"--local_addr={ADDRESSES[rank]}"]
        settings = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp", "resume=auto", *arguments]
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *launcher]
        command += [str(ROOT / "train.py"), str(ROOT / "configs" / "halfcheetah.yaml"), *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        hosts.append(subprocess.Popen(command, env=environment))
    while any(host.poll() is None for host in hosts) and not any(host.poll() for host in hosts):
        time.sleep(0.2)
    for host in hosts:  # where one has failed the other would wait for it
        if host.poll() is None and any(other.poll() for other in hosts):
            host.terminate()
    return max(abs(host.wait()) for host in hosts)


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        return inside(sys.argv[2:])
    if not shutil.which("unshare") or not shutil.which("ip"):
        print("skipped: needs unshare (util-linux) and ip (iproute2)")
        return SKIPPED
    namespaces = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    probe = subprocess.run([*namespaces, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        print(f"skipped: no namespaces here: {probe.stderr.strip()}")
        return SKIPPED
    arguments = [f"run_dir={Path(sys.argv[1]).resolve()}", *sys.argv[2:]]
    return subprocess.run([*namespaces, sys.executable, __file__, "--inside", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
