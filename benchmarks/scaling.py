"""What a second device is worth: one study on 1 and 2 local slots, on 1 and 2 nodes of a Ray cluster, and at a loss.

``python benchmarks/scaling.py`` runs each way several times, in turns so that a busy moment hits all, and prints one
JSON line:

- ``local_1_seconds``, ``local_2_seconds``: from the moment a worker acquired the study to its last event, one CPU
  thread per slot; ``local_speedup`` is their ratio. ``ray_...`` likewise, on a cluster of this machine whose nodes have
  one CPU each;
- ``launch``: what the first event of a cohort costs beside its training: seconds from a request to a fresh training
  process until its first event, and to one that is warm, locally and on the cluster;
- ``relaunch_seconds``: from the SIGKILL of a node's raylet, in mid-cohort, until the part that it trained has begun
  again on the other node, as the study's events tell it.

The workload computes: the study trains digits-mlp with a wide hidden layer, solo (one lane at a time), so that a
slot's time goes into matrix products. A machine needs as many cores as slots; on 2 cores the API, the worker and Ray's
own processes take their share of the same two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# This folder holds a file named as the package `service`: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import report  # noqa: E402, I001  (it makes the tests' modules importable)
from acceptance.deployment import Deployment, wait_for  # noqa: E402
from ray_nodes import RayNodes  # noqa: E402
from sqlalchemy import select  # noqa: E402
from service.db.models import JobEventRow  # noqa: E402
from service.launchers.local import LocalLauncher  # noqa: E402
from service.launchers.process import TrainingProcess  # noqa: E402
from service.launchers.protocol import Done  # noqa: E402
from service.settings import Settings  # noqa: E402

STUDY = {
    "workload": "digits-mlp",
    "parameters": {"hidden": 256},
    "num_trials": 8,
    "num_seeds": 4,
    "num_confirm_seeds": 4,
    "num_steps": 1200,
    "cohort_size": 8,
    "lanes": "solo",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STUDY["num_steps"])
    parser.add_argument("--without-ray", action="store_true")
    options = parser.parse_args()
    study = STUDY | {"num_steps": options.steps}
    result: dict[str, Any] = {"benchmark": "scaling", "study": study, "repeats": options.repeats}
    result |= speedup("local", local_ways(), study, options.repeats)
    launch = {
        f"local_{name}": seconds for name, seconds in launch_times(LocalLauncher.of(Settings())).items()
    }
    if not options.without_ray:
        result |= speedup("ray", ray_ways(), study, options.repeats)
        with cluster(1) as (_, settings):
            from service.launchers.ray import RayLauncher

            launcher = RayLauncher.of(Settings(**settings))
            launch |= {f"ray_{name}": seconds for name, seconds in launch_times(launcher).items()}
        lost = [relaunch_seconds(study) for _ in range(options.repeats)]
        result |= {"relaunch_seconds": round(statistics.median(lost), 2), "relaunch_all": rounded(lost)}
    report(result | {"launch": launch})


def speedup(
    name: str, ways: dict[int, Callable[[], Any]], study: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """The study's wall time each way, in turns."""
    times: dict[int, list[float]] = {number: [] for number in ways}
    for _ in range(repeats):
        for number, way in ways.items():
            with way() as deployment:
                times[number].append(study_seconds(deployment, study))
    medians = {number: statistics.median(each) for number, each in times.items()}
    return {
        **{f"{name}_{number}_seconds": round(each, 2) for number, each in medians.items()},
        f"{name}_speedup": round(medians[1] / medians[2], 2),
        f"{name}_all": {number: rounded(each) for number, each in times.items()},
    }


def local_ways() -> dict[int, Callable[[], Any]]:
    return {number: lambda number=number: deployed(devices=",".join(["cpu"] * number)) for number in (1, 2)}


def ray_ways() -> dict[int, Callable[[], Any]]:
    @contextmanager
    def on_cluster(number: int) -> Iterator[Deployment]:
        with cluster(number) as (_, settings), deployed(**settings, ray_slots=number) as deployment:
            yield deployment

    return {number: lambda number=number: on_cluster(number) for number in (1, 2)}


@contextmanager
def deployed(**settings: Any) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cliptune.db"
        settings = {"lease_seconds": 60, "renew_seconds": 15} | settings
        with Deployment(Path(folder) / "home", url, **settings) as deployment:
            deployment.start_api()
            deployment.start_worker()
            yield deployment


@contextmanager
def cluster(num_nodes: int) -> Iterator[tuple[RayNodes, dict[str, Any]]]:
    """A cluster of this machine, one CPU per node; and the settings that lead there."""
    with tempfile.TemporaryDirectory() as folder, RayNodes(Path(folder)) as nodes:
        nodes.have(num_nodes)
        # The deployments' processes read them.
        os.environ.update(nodes.environment)
        yield nodes, {"launcher": "ray", "ray_address": nodes.address, "ray_gpus": 0, "ray_cpus": 1}


def study_seconds(deployment: Deployment, study: dict[str, Any]) -> float:
    client = deployment.client()
    queued = client.create_study(study).id
    # Answered when the study ends: asking all the time would take the processor that is measured.
    found = wait_for(lambda: (now := client.get_study(queued, wait=20)).done and now, "the study", 900)
    assert found.state == "succeeded", found.error
    assert found.started_at is not None
    assert found.finished_at is not None
    return (found.finished_at - found.started_at).total_seconds()


def launch_times(launcher: Any, repeats: int = 5) -> dict[str, float]:
    """Seconds until the first event of a one-step probe, from a fresh process and from a warm one."""
    fresh, warm = [], []
    for _ in range(repeats):
        process = launcher.launch()
        try:
            fresh.append(first_event(process))
            warm.append(first_event(process))
        finally:
            process.stop()
    return {
        "fresh_seconds": round(statistics.median(fresh), 2),
        "warm_seconds": round(statistics.median(warm), 3),
    }


def first_event(process: TrainingProcess) -> float:
    started, first = time.monotonic(), None
    process.send(
        {"kind": "probe", "workload": "digits-mlp", "parameters": {}, "seeds": [0], "num_batches": 1}
    )
    while True:
        message = process.receive(60)
        if message is not None and message.kind == "probe":
            first = time.monotonic() - started
        if isinstance(message, Done):
            assert first is not None
            return first


def relaunch_seconds(study: dict[str, Any]) -> float:
    """From a node's death to the second beginning of what it trained."""
    with cluster(2) as (nodes, settings), deployed(**settings, ray_slots=2) as deployment:
        client = deployment.client()
        queued = client.create_study(study | {"num_steps": 20 * study["num_steps"]})
        # The second node's first beginning must not be taken for the relaunch.
        before = wait_for(lambda: begun(deployment, queued.id), "both parts")
        nodes.kill(nodes.node_of(before[-1][1]["pid"]))
        killed = time.time()
        # The cluster gets another, as an autoscaler would give it.
        nodes.have(2)
        again = wait_for(
            lambda: events(deployment, queued.id, "training_started")[len(before) :],
            "the second beginning",
            120,
        )
        client.cancel_study(queued.id)
        return again[0][0] / 1000 - killed


def begun(deployment: Deployment, study_id: str) -> list[tuple[int, dict[str, Any]]]:
    """When training processes were there, and which; nothing as long as one of the two slots has had none."""
    found = events(deployment, study_id, "training_started")
    return found if len({payload["slot"] for _, payload in found}) == 2 else []


def events(deployment: Deployment, study_id: str, kind: str) -> list[tuple[int, dict[str, Any]]]:
    """When events of a kind were written, in milliseconds, and what they say."""
    with deployment.database().read() as session:
        query = select(JobEventRow.created_at, JobEventRow.payload).where(
            JobEventRow.study_id == study_id, JobEventRow.kind == kind
        )
        return [(row[0], row[1]) for row in session.execute(query.order_by(JobEventRow.id))]


def rounded(values: list[float]) -> list[float]:
    return [round(each, 2) for each in values]


if __name__ == "__main__":
    main()
