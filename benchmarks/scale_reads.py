"""Two reads that grow with what a service has stored: a scrape of ``/metrics``, and the look for similar studies.

``python benchmarks/scale_reads.py`` fills a database of each kind and prints one JSON line per
database; medians of several reads, in one process, with nothing between it and the database:

- ``scrape_ms``: the figures of ``/metrics`` beside ``--studies`` studies (100,000), and as ``scrape_without_index_ms``
  the same without the index that holds what they sum;
- ``similar_ms``: what a study's probe looks for, beside ``--answers`` answers (20,000) that all recommend the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# This folder holds a file named as the package `service`: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import report  # noqa: E402, I001  (it makes the tests' modules importable)
from postgres import find_postgres_programs, private_cluster  # noqa: E402
from benchmarks.scale_rows import fill  # noqa: E402
from service.api.metrics import Metrics  # noqa: E402
from service.db.migrate import upgrade  # noqa: E402
from service.db.models import StudyRow  # noqa: E402
from service.db.session import Database  # noqa: E402
from service.launchers.protocol import read_reference  # noqa: E402
from service.recommendations import warm_start  # noqa: E402
from sqlalchemy import insert, text  # noqa: E402
from tuner.spec import study_spec  # noqa: E402

RECORDING = Path(__file__).parent / "results" / "scale-study.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    recording = json.loads(RECORDING.read_text())
    for name, opened in (("sqlite", sqlite), ("postgresql", postgresql)):
        with opened() as database:
            upgrade(database)
            fill(database, recording, queued=0, stored=options.answers)
            add_studies(database, recording, options.studies)
            metrics = Metrics(database)
            measured = {
                "scrape_ms": median_ms(lambda: metrics.render("default"), options.repeats),  # noqa: B023
                "similar_ms": median_ms(lambda: look(database, recording), options.repeats),
            }
            with database.write() as session:
                session.execute(text("DROP INDEX ix_cliptune_studies_devices"))
            without = median_ms(lambda: metrics.render("default"), options.repeats)  # noqa: B023
            measured["scrape_without_index_ms"] = without
        sizes = {"studies": options.studies, "answers": options.answers, "repeats": options.repeats}
        report({"benchmark": "scale_reads", "database": name, **sizes, **measured})


@contextmanager
def sqlite() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/cliptune.db")
        yield database
        database.close()


@contextmanager
def postgresql() -> Iterator[Database]:
    programs = find_postgres_programs()
    if programs is None:
        raise SystemExit("PostgreSQL's server programs are not installed: apt-get install postgresql")
    with private_cluster(programs) as cluster:
        database = Database(cluster.url)
        yield database
        database.close()


def add_studies(database: Database, recording: dict[str, Any], count: int) -> None:
    """Studies that have ended, of 20 keys."""
    spec = study_spec(recording["study"])
    with database.write() as session:
        for start in range(0, count, 5_000):
            rows = [
                {
                    "id": str(uuid.uuid4()),
                    "tenant_id": "default",
                    "workload": spec.workload,
                    "spec": recording["study"],
                    "spec_sha256": spec.digest,
                    "fingerprint": spec.fingerprint,
                    "job_id": str(uuid.uuid4()),
                    "extensions": [],
                    "key_id": f"key{number % 20}",
                    "device_milliseconds": number,
                    "created_at": number,
                }
                for number in range(start, min(count, start + 5_000))
            ]
            session.execute(insert(StudyRow), rows)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE" if database.dialect == "sqlite" else "VACUUM ANALYZE"))


def look(database: Database, recording: dict[str, Any]) -> None:
    with database.read() as session:
        found = warm_start(
            session,
            tenant_id="default",
            study_id=str(uuid.uuid4()),
            spec=study_spec(recording["study"]),
            reference=read_reference(recording["reference"]),
        )
    assert len(found) == 1, "all neighbours recommend the same"


def median_ms(read: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        read()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 1)


if __name__ == "__main__":
    main()
