"""How quick the service answers: recommendations under load, and from a submission to the first training step.

``python benchmarks/service.py`` prints one JSON line per measurement and database:

- ``recommendations``: GET /v1/recommendations over 32 keep-alive connections in a closed loop, with 100,000
  recommendations stored, once with an empty trials table and once with 200,000 trials in it. Beside it the same
  load on GET /healthz, which reads nothing: the ratio says what the query costs on this machine.
- ``submit_to_first_step``: seconds from POST /v1/studies to the event ``probe``, written after the first 64
  batches have gone forward and backward, on a worker that is idle and warm; best, median and worst of ten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# This file is named as the package it measures: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import report  # noqa: E402, I001  (it makes the tests' modules importable)
from acceptance.deployment import Deployment  # noqa: E402
from postgres import find_postgres_programs, private_cluster  # noqa: E402
from sqlalchemy import insert, text  # noqa: E402

from service.db.models import RecommendationRow, StudyRow, TrialRow  # noqa: E402
from service.db.session import Database  # noqa: E402
from tuner.spec import StudySpec  # noqa: E402

CONNECTIONS = 32
SECONDS = 8.0
NUM_WORKLOADS = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recommendations", type=int, default=100_000)
    parser.add_argument("--trials", type=int, default=200_000)
    parser.add_argument("--only-load", action="store_true", help="leave the latency of submissions out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as urls:
        for name, url in urls.items():
            measure(name, url, Path(folder) / f"home-{name}", options)


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    urls = {"sqlite": f"sqlite:///{folder / 'cliptune.db'}"}
    programs = find_postgres_programs()
    if programs is None:
        yield urls
        return
    with private_cluster(programs) as cluster:
        yield urls | {"postgresql": cluster.url}


def measure(name: str, url: str, home: Path, options: argparse.Namespace) -> None:
    settings = {"lease_seconds": 60, "renew_seconds": 15, "poll_seconds": 0.5}
    with Deployment(home, url, **settings) as deployment:
        deployment.start_api()
        address = json.loads((home / "service.json").read_text())["url"]
        key = (home / "key").read_text().strip()
        body = real_recommendation(deployment)
        if not options.only_load:
            latency = first_step_latencies(deployment)
            report({"benchmark": "submit_to_first_step", "database": name, **latency})
        stop_workers(deployment)
        database = Database(url)
        store_recommendations(database, body, options.recommendations)
        for trials in (0, options.trials):
            if trials:
                store_trials(database, trials)
            result = {
                "benchmark": "recommendations",
                "database": name,
                "connections": CONNECTIONS,
                "stored": options.recommendations,
                "trials": trials,
                "recommendations": load(address, key, "/v1/recommendations?workload=workload-{}"),
                "healthz": load(address, key, "/healthz?{}"),
            }
            report(result)
        database.close()


def real_recommendation(deployment: Deployment) -> dict[str, Any]:
    """The stored body of a real, small study: what is read back has its real size."""
    deployment.start_worker()
    client = deployment.client()
    study = client.create_study({"workload": "digits-mlp", "num_trials": 4, "num_seeds": 2, "num_steps": 30})
    while not (found := client.get_study(study.id)).done:
        time.sleep(0.2)
    assert found.result is not None, found.error
    return found.result.model_dump(mode="json")


def first_step_latencies(deployment: Deployment, count: int = 10) -> dict[str, Any]:
    client = deployment.client()
    seconds = {"training_started": [], "probe": []}
    for seed in range(count):
        time.sleep(4.0)  # a person between two submissions; the next training process warms up meanwhile
        spec = {"workload": "charlm-rnn", "num_trials": 2, "num_seeds": 2, "num_steps": 5, "seed": seed}
        sent = time.monotonic()
        study = client.create_study(spec)
        for event in client.events(study.id):
            if event.kind in seconds:
                seconds[event.kind].append(time.monotonic() - sent)
    return {
        kind: {"best": min(each), "median": statistics.median(each), "worst": max(each)}
        for kind, each in seconds.items()
    }


def stop_workers(deployment: Deployment) -> None:
    for process in deployment.processes[1:]:
        process.terminate()
        process.wait()


def store_recommendations(database: Database, body: dict[str, Any], count: int) -> None:
    for start in range(0, count, 5_000):
        rows = [
            {
                "id": str(uuid.uuid4()),
                "tenant_id": "default",
                "study_id": str(uuid.uuid4()),
                "workload": f"workload-{number % NUM_WORKLOADS}",
                "fingerprint": f"{number:016x}",
                "verdict": "clip",
                "method": "global_norm",
                "threshold": 1.0,
                "body": body,
                "created_at": number,
            }
            for number in range(start, min(count, start + 5_000))
        ]
        with database.write() as session:
            session.execute(insert(RecommendationRow), rows)
    analyze(database)


def store_trials(database: Database, count: int) -> None:
    spec = StudySpec(workload="workload-0")
    study_id = str(uuid.uuid4())
    with database.write() as session:
        session.add(
            StudyRow(
                id=study_id,
                tenant_id="default",
                name=None,
                workload=spec.workload,
                spec=spec.to_json(),
                spec_sha256=spec.digest,
                fingerprint=spec.fingerprint,
                job_id=str(uuid.uuid4()),
                reference=None,
                created_at=0,
            )
        )
        session.flush()
        for start in range(0, count, 10_000):
            rows = [
                {
                    "id": str(uuid.uuid4()),
                    "study_id": study_id,
                    "number": number,
                    "cohort": 0,
                    "method": "global_norm",
                    "threshold": 1.0,
                    "state": "complete",
                    "created_at": 0,
                }
                for number in range(start, min(count, start + 10_000))
            ]
            session.execute(insert(TrialRow), rows)
    analyze(database)


def analyze(database: Database) -> None:
    with database.write() as session:
        session.execute(text("ANALYZE"))


def load(address: str, key: str, path: str) -> dict[str, float]:
    """Closed-loop load from a process of its own, so that the generator's work is not the server's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(closed_loop, (address, key, path, 2.0))
        latencies, seconds = pool.apply(closed_loop, (address, key, path, SECONDS))
    latencies.sort()
    return {
        "requests_per_second": round(len(latencies) / seconds, 1),
        "p50_ms": round(1000 * latencies[len(latencies) // 2], 2),
        "p99_ms": round(1000 * latencies[int(len(latencies) * 0.99)], 2),
        "worst_ms": round(1000 * latencies[-1], 2),
    }


def closed_loop(address: str, key: str, path: str, seconds: float) -> tuple[list[float], float]:
    return asyncio.run(_closed_loop(address, key, path, seconds))


async def _closed_loop(address: str, key: str, path: str, seconds: float) -> tuple[list[float], float]:
    host, _, port = address.removeprefix("http://").partition(":")
    latencies: list[float] = []
    started = time.perf_counter()

    async def one_connection(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        count = number
        while time.perf_counter() - started < seconds:
            target = path.format(count % NUM_WORKLOADS)
            count += 7
            request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n"
            sent = time.perf_counter()
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*map(one_connection, range(CONNECTIONS)))
    return latencies, time.perf_counter() - started


if __name__ == "__main__":
    main()
