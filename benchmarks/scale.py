"""How far one PostgreSQL and one API process go: many slots, a long queue, many clients, and no training at all.

The real queue, the real event writes and the real API, with trainings replaced by timers. Slots play a recorded study
(`benchmarks/scale_recording.py`) again and again; 10,000 studies are queued; 100 clients read recommendations, studies
and lists, submit, and follow event streams. ``python benchmarks/scale.py`` prints one JSON line per measurement:

- ``ramp``: 10 to 1,000 slots, with studies of 100 seconds (the recorded one) and of an hour, all clients beside them.
- ``alone``: each of acquire, idle polls, event writes, requests and event streams by itself, at rising rates, until the
  rate is no longer reached or the p99 is above half a second.

Every time counts from the moment at which the action was due. Processor time is told apart for PostgreSQL, the API, the
slots and the clients: all of them share this machine, which a deployment's parts would not, so a cost per action says
more than the rate at which this machine is full.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In place of this folder, whose service.py would be imported instead of the package.
sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import facts  # noqa: E402, I001  (it makes the tests' modules importable)
from benchmarks import scale_clients, scale_rows, scale_slots  # noqa: E402
from benchmarks.scale_recording import KEPT  # noqa: E402
from benchmarks.scale_script import read_recording, script  # noqa: E402
from acceptance.deployment import Deployment, child_pids  # noqa: E402
from postgres import find_postgres_programs, private_cluster  # noqa: E402
from sqlalchemy import text  # noqa: E402

from service.db.session import Database  # noqa: E402

RATES = {
    "cycles": (50, 100, 200, 400),
    "polls": (100, 400, 800),
    "writes": (50, 100, 200, 400),
    "recommendation": (200, 400, 800, 1600),
    "list": (20, 40, 80),
    "study": (50, 100, 200),
    "submit": (25, 50, 100),
    "streams": (50, 200, 400, 800),
}
#: A rate is not reached if less than this share of it was done, or if the p99 is longer.
_SHARE, _P99_MS = 0.95, 500.0


@dataclass
class Bench:
    """What is measured: the database, the API, and how."""

    url: str
    database: Database
    postmaster: int
    api: int
    address: str
    key: str
    recording: dict[str, Any]
    seconds: float
    backlog: int
    processes: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=_numbers, default=[10, 30, 100, 300, 1000])
    parser.add_argument("--study-seconds", type=_numbers, default=[100, 3600])
    parser.add_argument("--alone", type=_names, default=list(RATES), help="comma-separated; '' for none")
    parser.add_argument("--rate", type=int, help="for all of --alone, in place of the rising ones")
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--stored", type=int, default=20_000, help="recommendations")
    parser.add_argument("--processes", type=int, default=2, help="that play the slots")
    parser.add_argument("--clients", type=int, default=100, help="four in ten follow a study")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="per measurement of the ramp; half of it alone"
    )
    parser.add_argument("--label", default="", help="stands in every line, to tell two runs apart")
    parser.add_argument("--out", type=Path, help="append the lines there too")
    options = parser.parse_args()
    # As an interrupt: else the database and the API would outlive this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder, bench_of(Path(folder), options) as bench:
        for line in measurements(bench, options):
            text_line = json.dumps({**line, "label": options.label, "machine": facts()})
            print(text_line, flush=True)
            if options.out:
                with options.out.open("a") as kept:
                    kept.write(text_line + "\n")


@contextmanager
def bench_of(folder: Path, options: argparse.Namespace) -> Iterator[Bench]:
    programs = find_postgres_programs()
    if programs is None:
        sys.exit("no PostgreSQL server programs (initdb, pg_ctl) on this machine: install postgresql")
    recording = read_recording(KEPT)
    with private_cluster(programs) as cluster, Deployment(folder / "home", cluster.url) as deployment:
        api = deployment.start_api()
        database = deployment.database()
        scale_rows.fill(database, recording, options.queued, options.stored)
        yield Bench(
            url=cluster.url,
            database=database,
            postmaster=int((cluster.folder / "data" / "postmaster.pid").read_text().split()[0]),
            api=api.pid,
            address=json.loads((folder / "home" / "service.json").read_text())["url"],
            key=(folder / "home" / "key").read_text().strip(),
            recording=recording,
            seconds=options.seconds,
            backlog=options.queued,
            processes=options.processes,
        )


def measurements(bench: Bench, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in options.alone:
        for rate in [options.rate] if options.rate else RATES[name]:
            line = alone(bench, name, rate)
            yield line
            if not line["reached"]:
                break
    for study_seconds in options.study_seconds:
        for slots in options.slots:
            yield ramp(bench, slots, study_seconds, options.clients)


def ramp(bench: Bench, slots: int, study_seconds: float, clients: int) -> dict[str, Any]:
    """All at once: slots that drive studies of a length, and clients."""
    streams = clients * 4 // 10
    players = players_of(
        bench, mode="studies", slots=slots, study_seconds=study_seconds, seconds=bench.seconds
    )
    load = load_of(bench, clients - streams, per_second=clients - streams, streams=streams)
    written = len(script(bench.recording, study_seconds)) * slots / study_seconds
    return {
        "benchmark": "scale",
        "part": "ramp",
        "slots": slots,
        "study_seconds": study_seconds,
        "clients": clients,
        "streams": streams,
        "studies_per_second": round(slots / study_seconds, 2),
        "writes_per_second": round(written, 1),
        **measured(bench, players, load),
    }


def alone(bench: Bench, name: str, rate: int) -> dict[str, Any]:
    """One kind of action by itself, ``rate`` of them a second; of event streams, ``rate`` of them at a time."""
    seconds = bench.seconds / 2
    if name == "streams":
        # Studies of ten minutes tell something about twice a second each.
        players = players_of(bench, mode="studies", slots=rate, study_seconds=600, seconds=seconds)
        load = load_of(bench, 0, per_second=0, streams=rate, seconds=seconds)
    elif name in scale_clients.MIX:
        players = players_of(bench, mode="studies", slots=2, study_seconds=3600, seconds=seconds)
        load = load_of(bench, 32, per_second=rate, mix={name: 1.0}, seconds=seconds)
    else:
        players = players_of(bench, mode=name, slots=50, per_second=rate, seconds=seconds)
        load = None
    found = measured(bench, players, load)
    figures = found["latency_ms"].get({"streams": "stream"}.get(name, name), {"per_second": 0.0, "p99": None})
    is_reached = figures["p99"] is not None and figures["p99"] <= _P99_MS
    if name != "streams":
        is_reached &= figures["per_second"] >= _SHARE * rate
    return {
        "benchmark": "scale",
        "part": "alone",
        "action": name,
        "rate": rate,
        "reached": is_reached,
        **found,
    }


def players_of(
    bench: Bench, *, mode: str, slots: int, seconds: float, **more: float
) -> list[scale_slots.Play]:
    """The slots, dealt out over the processes."""
    processes = min(bench.processes, slots)
    if "per_second" in more:
        more["per_second"] /= processes
    shares = [slots // processes + (number < slots % processes) for number in range(processes)]
    return [
        scale_slots.Play(bench.url, bench.recording, mode, share, seconds=seconds, **more) for share in shares
    ]


def load_of(bench: Bench, connections: int, **more: Any) -> scale_clients.Load:
    given = {"mix": scale_clients.MIX, "streams": 0, "seconds": bench.seconds} | more
    spec = {
        name: bench.recording["study"][name] for name in ("workload", "num_trials", "num_seeds", "num_steps")
    }
    return scale_clients.Load(
        url=bench.url,
        address=bench.address,
        key=bench.key,
        connections=connections,
        spec=spec,
        workloads=scale_rows.NUM_WORKLOADS,
        **given,
    )


def measured(
    bench: Bench, players: list[scale_slots.Play], load: scale_clients.Load | None
) -> dict[str, Any]:
    """Run the processes beside each other; what they met, and who used the processors meanwhile."""
    scale_rows.reset(bench.database, bench.recording, bench.backlog)
    context = multiprocessing.get_context("spawn")
    targets: list[tuple[Any, Any]] = [(scale_slots.play, each) for each in players]
    targets += [(scale_clients.run, load)] if load is not None else []
    ready = context.Barrier(len(targets) + 1)
    pipes, processes = [], []
    for target, what in targets:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(what, ready, sender), daemon=True)
        process.start()
        # Else the end of a process that died would not be seen here.
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    ready.wait(timeout=300)
    pids = {
        "postgresql": [bench.postmaster],
        "api": [bench.api],
        "slots": [each.pid for each in processes[: len(players)]],
        "clients": [each.pid for each in processes[len(players) :]],
    }
    before, began = {name: cpu_seconds(each) for name, each in pids.items()}, time.monotonic()
    # Before the slots end, and PostgreSQL's processes for them: what those used would be missing for a moment.
    time.sleep(players[0].seconds * 0.9)
    used, watched = (
        {name: cpu_seconds(each) - before[name] for name, each in pids.items()},
        time.monotonic() - began,
    )
    connections = num_connections(bench.database)
    answers = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join(timeout=30)
    taken: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for name, each in answer["taken"]:
            taken[name].append(each)
    errors = [error for answer in answers for error in answer["errors"]]
    return {
        "seconds": players[0].seconds,
        "cores": {name: round(seconds / watched, 3) for name, seconds in used.items()},
        "latency_ms": {name: quantiles(values, players[0].seconds) for name, values in sorted(taken.items())},
        "overdue": sum(answer["overdue"] for answer in answers),
        "errors": len(errors),
        "first_errors": errors[:3],
        "connections": connections,
    }


def quantiles(values: list[float], seconds: float) -> dict[str, float]:
    ordered = sorted(values)
    return {"per_second": round(len(ordered) / seconds, 1)} | {
        name: round(1000 * ordered[int(share * (len(ordered) - 1))], 1)
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }


def cpu_seconds(pids: list[int | None]) -> float:
    """Processor time of processes and of their children, those that have ended included."""
    ticks = 0
    for pid in pids:
        if pid is None:
            continue
        ticks += sum(_ticks(pid, range(11, 15)))
        ticks += sum(sum(_ticks(child, range(11, 13))) for child in child_pids(pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int, fields: range) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(found[field]) for field in fields]


def num_connections(database: Database) -> int:
    with database.read() as session:
        counted = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        return int(session.execute(text(counted)).scalar_one())


def _numbers(given: str) -> list[int]:
    return [int(each) for each in given.split(",") if each]


def _names(given: str) -> list[str]:
    names = [each for each in given.split(",") if each]
    if unknown := set(names) - set(RATES):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(RATES)}"
        )
    return names


if __name__ == "__main__":
    main()
