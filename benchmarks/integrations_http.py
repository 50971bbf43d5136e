"""How many round trips per second external training processes get: ask, three reports, complete.

``python benchmarks/integrations_http.py`` starts ``cliptune api`` on SQLite and on PostgreSQL in turn, puts up studies
(25 cohorts of 8 settings x 3 seeds each) and lets 1 and 32 clients work them off, four at a time, in a closed loop,
each over a keep-alive connection from a process of their own. One JSON line per database and number of clients; the
goal is 300 round trips per second with 32 clients on PostgreSQL, with a p99 under 100 ms. Beside it the same
connections on GET /healthz.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# This folder holds a file that is named as the package it measures: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import facts  # noqa: E402, I001  (it makes the tests' modules importable)
from acceptance.deployment import Deployment  # noqa: E402
from postgres import find_postgres_programs, private_cluster  # noqa: E402
from sqlalchemy import insert  # noqa: E402

from service.db.clock import database_now  # noqa: E402
from service.db.models import JobRow, StudyRow, TrialRow  # noqa: E402
from service.db.session import Database  # noqa: E402
from service.keys import DEFAULT_TENANT  # noqa: E402
from service.lanes import insert_lanes  # noqa: E402
from tuner.spec import StudySpec  # noqa: E402

SECONDS = 8.0
CLIENTS = (1, 32)
#: Studies that the clients share at a time, before they go on to the next ones: a trial is compared with all others
#: of its study, so a study has no more trials here than the service allows by default.
STUDIES = 4
COHORT = 8
NORMS = [0.25] * 50
SPEC = StudySpec(workload="benchmark", external=True, num_steps=400, num_seeds=3, cohort_size=COHORT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--cohorts", type=int, default=25, help="of 24 lanes, per study")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="default: both")
    parser.add_argument("--out", type=Path, help="file that the lines are kept in as well")
    options = parser.parse_args()
    if options.out is not None:
        options.out.write_text("")
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as urls:
        for name, url in urls.items():
            if options.database in (None, name):
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
    with Deployment(home, url, lease_seconds=60, renew_seconds=15) as deployment:
        server = deployment.start_api().pid
        address = json.loads((home / "service.json").read_text())["url"]
        key = (home / "key").read_text().strip()
        database = Database(url)
        for clients in CLIENTS:
            alone = load(address, key, (), clients, min(2.0, options.seconds))
            studies = tuple(put_up(database, options.cohorts) for _ in range(4 * STUDIES))
            before = cpu_seconds(server)
            figures = load(address, key, studies, clients, options.seconds)
            spent = 1000 * (cpu_seconds(server) - before) / figures["round_trips"]
            result = {
                "benchmark": "ask_report_complete",
                "database": name,
                "clients": clients,
                **figures,
                "server_cpu_ms": round(spent, 2),
                "healthz_per_second": alone["round_trips_per_second"],
                "machine": facts(),
            }
            line = json.dumps(result)
            print(line, flush=True)
            if options.out is not None:
                with options.out.open("a") as kept:
                    kept.write(line + "\n")
        database.close()


def cpu_seconds(pid: int) -> float:
    """What a process has spent so far, its threads included; nothing of the database's server."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def put_up(database: Database, num_cohorts: int) -> str:
    """A study whose worker has put up so many cohorts; its id."""
    study_id, job_id = str(uuid.uuid4()), str(uuid.uuid4())
    with database.write() as session:
        now = database_now(session)
        study = {"id": study_id, "tenant_id": DEFAULT_TENANT, "workload": SPEC.workload, "spec": SPEC.to_json(),
                 "spec_sha256": SPEC.digest, "fingerprint": SPEC.fingerprint, "job_id": job_id}  # fmt: skip
        session.execute(insert(StudyRow), [study | {"created_at": now}])
        job = {"id": job_id, "tenant_id": DEFAULT_TENANT, "study_id": study_id, "kind": "study", "payload": {},
               "state": "running", "owner": "benchmark", "run_after": 0, "max_attempts": 3}  # fmt: skip
        session.execute(insert(JobRow), [job | {"created_at": now, "lease_until": now + 3_600_000}])
        for cohort in range(num_cohorts):
            trials = [
                {
                    "id": str(uuid.uuid4()),
                    "study_id": study_id,
                    "number": COHORT * cohort + index,
                    "cohort": cohort,
                    "method": "global_norm" if index else "none",
                    "threshold": float(index) or None,
                    "state": "running",
                    "created_at": now,
                }
                for index in range(COHORT)
            ]
            session.execute(insert(TrialRow), trials)
            ids = [str(trial["id"]) for trial in trials]
            insert_lanes(
                session, study_id=study_id, tenant_id=DEFAULT_TENANT, trial_ids=ids, seeds=SPEC.seeds, now=now
            )
    return study_id


def load(address: str, key: str, studies: tuple[str, ...], clients: int, seconds: float) -> dict[str, Any]:
    """Closed-loop load from a process of its own, so that the generator's work is not the server's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        latencies, elapsed = pool.apply(closed_loop, (address, key, studies, clients, seconds))
    every = sorted(seconds for each in latencies.values() for seconds in each)
    return {
        "round_trips": len(every),
        "round_trips_per_second": round(len(every) / elapsed, 1),
        **quantiles(every),
        "by_call": {verb: {"count": len(each)} | quantiles(sorted(each)) for verb, each in latencies.items()},
    }


def quantiles(ordered: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(1000 * ordered[len(ordered) // 2], 2),
        "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 2),
        "worst_ms": round(1000 * ordered[-1], 2),
    }


def closed_loop(
    address: str, key: str, studies: tuple[str, ...], clients: int, seconds: float
) -> tuple[dict[str, list[float]], float]:
    return asyncio.run(_closed_loop(address, key, studies, clients, seconds))


class Line:
    """A keep-alive connection, and how long each call on it took."""

    def __init__(self, host: str, port: int, key: str, latencies: dict[str, list[float]]) -> None:
        self._host, self._port, self._key = host, port, key
        self._latencies = latencies

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def call(self, verb: str, target: str, body: dict[str, Any] | None = None) -> Any:
        """One round trip; its answer."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{'GET' if body is None else 'POST'} {target} HTTP/1.1\r\nHost: {self._host}\r\n"
        head += f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
        sent = time.perf_counter()
        self._writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        document = json.loads(await self._reader.readexactly(length))
        self._latencies.setdefault(verb, []).append(time.perf_counter() - sent)
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")), (answer, document)
        return document

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def _closed_loop(
    address: str, key: str, studies: tuple[str, ...], clients: int, seconds: float
) -> tuple[dict[str, list[float]], float]:
    host, _, port = address.removeprefix("http://").partition(":")
    latencies: dict[str, list[float]] = {}
    lines = [Line(host, int(port), key, latencies) for _ in range(clients)]
    for line in lines:
        await line.open()
    started = time.perf_counter()

    async def work(line: Line, number: int) -> None:
        chance, place = random.Random(number), number % STUDIES
        while time.perf_counter() - started < seconds:
            if not studies:
                await line.call("healthz", "/healthz")
            else:
                if not await train(line, studies[place % len(studies)], f"client {number}", chance):
                    place += STUDIES

    await asyncio.gather(*(work(line, number) for number, line in enumerate(lines)))
    elapsed = time.perf_counter() - started
    for line in lines:
        line.close()
    return latencies, elapsed


async def train(line: Line, study_id: str, client_id: str, chance: random.Random) -> bool:
    """One lane, if there is one left: its training takes no time, so that only the service is measured."""
    lease = await line.call("ask", f"/v1/studies/{study_id}/trials:ask", {"client_id": client_id})
    if "lease_token" not in lease:
        return False
    where, token = f"/v1/trials/{lease['trial_id']}", {"lease_token": lease["lease_token"]}
    for step in lease["rung_steps"]:
        report = {"step": step, "value": 2.0 + chance.random() / step, "norms": NORMS}
        directive = await line.call("report", f"{where}/report", token | report)
        if not directive["go_on"]:
            break
    await line.call("complete", f"{where}/complete", token | {"outcome": "complete"})
    return True


if __name__ == "__main__":
    main()
