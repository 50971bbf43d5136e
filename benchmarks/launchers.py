"""What a launcher costs: from a request to its answer, from a node's death to its news, from a stop to nothing left.

``python benchmarks/launchers.py`` starts a Ray cluster of two nodes on this machine and prints one JSON line per
launcher, with the median and the largest of each time in seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import report  # noqa: E402, I001  (it makes the tests' modules importable)
from liveness import is_running  # noqa: E402
from ray_nodes import RayNodes  # noqa: E402

from service.errors import TrainingError  # noqa: E402
from service.launchers.local import LocalLauncher  # noqa: E402
from service.launchers.process import TrainingProcess  # noqa: E402
from service.launchers.protocol import Broken, Done, Ready  # noqa: E402
from service.launchers.ray import RayLauncher  # noqa: E402
from service.settings import Settings  # noqa: E402
from tuner.training.cohort import Progressed  # noqa: E402
from tuner.workloads.registrations import BUILT_IN  # noqa: E402

ODD = str(ROOT / "tests" / "service" / "launchers" / "odd_trainer.py")
#: A request that hardly trains.
PROBE = {"kind": "probe", "workload": "digits-mlp", "parameters": {}, "seeds": [0], "num_batches": 1}
Times = dict[str, list[float]]


def main() -> None:
    """Measure both launchers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    local = LocalLauncher(threads=1, kill_grace_seconds=3, registrations=BUILT_IN)
    show("local", measure(local.launch, lambda: odd_local(), repeats))
    with tempfile.TemporaryDirectory() as folder, RayNodes(Path(folder)) as nodes:
        os.environ |= nodes.environment
        settings = Settings(launcher="ray", ray_address=nodes.address, ray_gpus=0, kill_grace_seconds=3)
        nodes.have(2)
        trained = RayLauncher(settings, registrations=BUILT_IN)
        odd = RayLauncher(settings, registrations=BUILT_IN, program=(ODD,))
        times = measure(trained.launch, odd.launch, repeats)
        for _ in range(repeats):
            nodes.have(2)
            times["node_death_to_news"].append(node_death(odd.launch(), nodes))
        show("ray", times)


def odd_local() -> TrainingProcess:
    """A process that only hangs."""
    return TrainingProcess((sys.executable, ODD), threads=1, kill_grace_seconds=3)


def measure(train: Callable[[], TrainingProcess], odd: Callable[[], TrainingProcess], repeats: int) -> Times:
    """Start, request, stop and kill processes."""
    times: Times = defaultdict(list)
    for _ in range(repeats):
        started = time.monotonic()
        process = train()
        await_kind(process, Ready)
        times["launch_to_ready"].append(time.monotonic() - started)
        for name in ("first_request", "next_request"):
            started = time.monotonic()
            process.send(PROBE)
            await_kind(process, Done)
            times[name].append(time.monotonic() - started)
        process.stop()
        for name in ("stop_to_gone", "kill_to_gone"):
            process = odd()
            trainer = hang(process)
            started = time.monotonic()
            if name == "stop_to_gone":
                process.stop()
            else:
                os.kill(process.pid, signal.SIGKILL)
            while is_running(trainer):
                time.sleep(0.001)
            times[name].append(time.monotonic() - started)
            process.stop()
    return times


def node_death(process: TrainingProcess, nodes: RayNodes) -> float:
    """Seconds until the worker knows that a node was killed."""
    trainer = hang(process)
    node = nodes.node_of(trainer)
    started = time.monotonic()
    nodes.kill(node)
    await_kind(process, Broken)
    seconds = time.monotonic() - started
    process.stop()
    return seconds


def hang(process: TrainingProcess) -> int:
    """Let a process hang; the id of what trains."""
    process.send({"kind": "odd", "behaviour": "grandchild"})
    await_kind(process, Progressed)
    return 0 if process.ready is None else process.ready.pid


def await_kind(process: TrainingProcess, kind: type) -> None:
    """Read up to a message of a kind.

    Raises:
        TrainingError: if none comes.
    """
    deadline = time.monotonic() + 120
    while not isinstance(process.receive(1), kind):
        if time.monotonic() > deadline:
            raise TrainingError(f"no {kind.__name__} within two minutes", cause="stall")


def show(launcher: str, times: Times) -> None:
    """Print one line."""
    seconds = {
        name: {"median": round(statistics.median(each), 3), "largest": round(max(each), 3)}
        for name, each in times.items()
    }
    report({"launcher": launcher, "seconds": seconds})


if __name__ == "__main__":
    main()
