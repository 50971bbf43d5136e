"""What one real study writes: every transaction of its worker, when it came, and what stood in it.

``python benchmarks/scale_recording.py`` runs the study of `make demo` (charlm-rnn, 16 settings x 5 seeds x 300 steps)
through a real API and a real worker on a private PostgreSQL, and reads the transactions back from the rows: PostgreSQL
keeps with each row which transaction wrote it. The result, `benchmarks/results/scale-study.json`, is what
`benchmarks/scale.py` plays again on many slots. One lane and one answer stand for all of them, so that it stays small.

It also counts what the worker holds: its connections, and PostgreSQL's commits and bytes of write-ahead log.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

# In place of this folder, whose service.py would be imported instead of the package.
sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import ROOT, facts  # noqa: E402, I001  (it makes the tests' modules importable)
from acceptance.deployment import Deployment  # noqa: E402
from postgres import find_postgres_programs, private_cluster  # noqa: E402
from sqlalchemy import text  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402

from service.db.session import Database  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "scale-study.json"
STUDY = {
    "workload": "charlm-rnn",
    "parameters": {"learning_rate": 6},
    "num_trials": 16,
    "num_seeds": 5,
    "num_steps": 300,
    "current": {"method": "global_norm", "threshold": 1.0},
}
#: Events whose payload is played again as it is.
_AS_THEY_ARE = ("engine", "checkpoint", "training_started")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--steps", type=int, default=STUDY["num_steps"])
    options = parser.parse_args()
    programs = find_postgres_programs()
    if programs is None:
        sys.exit("no PostgreSQL server programs (initdb, pg_ctl) on this machine: install postgresql")
    with tempfile.TemporaryDirectory() as folder, private_cluster(programs) as cluster:
        recording = record(Path(folder) / "home", cluster.url, STUDY | {"num_steps": options.steps})
    options.out.write_text(json.dumps(recording, indent=None, separators=(",", ":")) + "\n")
    summary = {name: recording[name] for name in ("seconds", "counts", "bytes", "worker", "machine")}
    print(json.dumps({"benchmark": "scale_recording", **summary}))


def record(home: Path, url: str, study: dict[str, Any]) -> dict[str, Any]:
    """Run a study and read back what it wrote."""
    settings = {"lease_seconds": 60, "renew_seconds": 15, "poll_seconds": 0.5}
    with Deployment(home, url, **settings) as deployment:
        deployment.start_api()
        client, database = deployment.client(), deployment.database()
        client.list_workers()
        without = _num_sessions(database)
        deployment.start_worker()
        before = _counters(database)
        began, connections = time.monotonic(), 0
        study_id = client.create_study(study).id
        while not (found := client.get_study(study_id)).done:
            connections = max(connections, _num_sessions(database) - without)
            time.sleep(1.0)
        assert found.result is not None, found.error
        seconds, after = time.monotonic() - began, _counters(database)
        with database.read() as session:
            recording = _read_back(session, study_id)
    recording["seconds"] = round(seconds, 2)
    recording["worker"] = {"connections": connections} | {
        name: after[name] - before[name] for name in ("commits", "wal_bytes")
    }
    recording["machine"] = facts()
    return recording


def _read_back(session: Session, study_id: str) -> dict[str, Any]:
    asked = {"study": study_id}
    events = session.execute(
        text(
            "SELECT xmin::text AS number, kind, payload, created_at FROM cliptune_job_events"
            " WHERE study_id = :study ORDER BY id"
        ),
        asked,
    ).all()
    rows = session.execute(
        text("SELECT id, number, stage, seeds FROM cliptune_trials WHERE study_id = :study"), asked
    ).all()
    numbers = {row.id: row.number for row in rows}
    acquired = next(event.created_at for event in events if event.kind == "acquired")
    transactions = [
        {
            "at": round((group[0].created_at - acquired) / 1000, 3),
            "writes": [_write(event.kind, event.payload, numbers) for event in group],
        }
        for _, grouped in itertools.groupby(events, key=lambda event: event.number)
        if (group := list(grouped))[0].kind not in ("queued", "acquired")
    ]
    spec, reference = session.execute(
        text("SELECT spec, reference FROM cliptune_studies WHERE id = :study"), asked
    ).one()
    return {
        "study": spec,
        "reference": reference,
        "lane": _typical_lane(session, study_id),
        "answer": session.execute(
            text("SELECT body FROM cliptune_recommendations WHERE study_id = :study"), asked
        ).scalar_one(),
        "transactions": [each for each in transactions if not _is_progress(each)],
        "counts": dict(Counter(event.kind for event in events)) | _row_counts(session, study_id),
        "bytes": _row_bytes(session, study_id),
    }


def _write(kind: str, payload: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """An event without what is another study's: ids become numbers of trials."""
    if kind == "cohort":
        kept = {name: payload[name] for name in ("cohort", "stage", "seeds", "rung_steps")}
        trials = [{"number": each["number"], "setting": each["setting"]} for each in payload["trials"]]
        return {"kind": kind, **kept, "trials": trials}
    if kind == "rung":
        kept = {name: payload[name] for name in ("cohort", "index", "step", "num_rungs")}
        values = [[numbers[each["trial_id"]], each["mean"]] for each in payload["values"]]
        return {
            "kind": kind,
            **kept,
            "values": values,
            "pruned": [numbers[each] for each in payload["pruned"]],
        }
    if kind == "trial":
        return {"kind": kind, "number": payload["number"], "state": payload["state"]}
    if kind in _AS_THEY_ARE:
        return {"kind": kind, "payload": payload}
    return {"kind": kind}


def _is_progress(transaction: dict[str, Any]) -> bool:
    # How often progress is told depends on a study's length: whoever plays this again works it out.
    return all(each["kind"] == "progress" for each in transaction["writes"])


def _typical_lane(session: Session, study_id: str) -> dict[str, Any]:
    """The lane of middle size."""
    found = session.execute(
        text(
            "SELECT lanes FROM cliptune_trial_results JOIN cliptune_trials ON id = trial_id WHERE study_id = :study"
        ),
        {"study": study_id},
    )
    lanes = sorted((lane for (lanes,) in found for lane in lanes), key=lambda lane: len(json.dumps(lane)))
    middle: dict[str, Any] = lanes[len(lanes) // 2]
    return middle


def _row_counts(session: Session, study_id: str) -> dict[str, int]:
    of_trial = "SELECT count(*) FROM {} JOIN cliptune_trials ON id = trial_id WHERE study_id = :study"
    return {
        name: int(session.execute(text(of_trial.format(name)), {"study": study_id}).scalar_one())
        for name in ("cliptune_trial_reports", "cliptune_trial_results")
    }


def _row_bytes(session: Session, study_id: str) -> dict[str, int]:
    """Size of the documents that were written, as text."""
    sizes = {
        "events": "SELECT sum(length(payload::text)) FROM cliptune_job_events WHERE study_id = :study",
        "results": "SELECT sum(length(lanes::text)) FROM cliptune_trial_results JOIN cliptune_trials ON id = trial_id"
        " WHERE study_id = :study",
        "answer": "SELECT sum(length(body::text)) FROM cliptune_recommendations WHERE study_id = :study",
    }
    return {
        name: int(session.execute(text(statement), {"study": study_id}).scalar_one())
        for name, statement in sizes.items()
    }


def _counters(database: Database) -> dict[str, int]:
    with database.read() as session:
        row = session.execute(
            text(
                "SELECT (SELECT sum(xact_commit) FROM pg_stat_database) AS commits,"
                " (SELECT wal_bytes FROM pg_stat_wal) AS wal_bytes"
            )
        ).one()
    return {"commits": int(row.commits), "wal_bytes": int(row.wal_bytes)}


def _num_sessions(database: Database) -> int:
    """Sessions of all processes on the database, but for the one that asks."""
    with database.read() as session:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        return int(session.execute(text(asked)).scalar_one()) - 1


if __name__ == "__main__":
    main()
