"""What a study costs besides its training: the service against the library, and the library against its steps.

``python benchmarks/overhead.py`` runs one charlm-rnn study several times each way, on one CPU thread, in turns
so that a busy moment hits both, and prints one JSON line:

- ``steps_seconds``: optimizer steps alone, summed over all lanes (measured around the step loop);
- ``library_seconds``: `tuner.tune` in one process: the steps, and the probe, evaluations, search, statistics;
- ``service_seconds``: from the moment a worker acquired the job to its last event: all of that, and the
  process start, the pipe, the database, the events;
- ``service_share``: (service - library) / service, what running it as a service costs;
- ``not_steps_share``: (service - steps) / service, everything that is no optimizer step.

The goal is under 5 % of a study's wall time that is not training; evaluation on held-out data at the rungs is
counted as training in ``service_share`` and as overhead in ``not_steps_share``. Both are reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# This folder holds a file named as the package `service`: the folder of the script must not come first.
sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import report  # noqa: E402, I001  (it makes the tests' modules importable)
from acceptance.deployment import Deployment  # noqa: E402

STUDY = {"workload": "charlm-rnn", "num_trials": 16, "num_seeds": 3, "num_steps": 300}

IN_PROCESS = """
import json, sys, time, torch
torch.set_num_threads(1)
from tuner import tune
study = json.loads(sys.argv[1])
workload = study.pop("workload")
import tuner.search.search, scipy.special  # the imports are not the study's cost
started = time.perf_counter()
found = tune(workload, **study)
print(json.dumps([time.perf_counter() - started, found.train_seconds]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cliptune.db"
        with Deployment(Path(folder) / "home", url, lease_seconds=60, renew_seconds=15) as deployment:
            deployment.start_api()
            deployment.start_worker()
            for _ in range(options.repeats):
                library, steps_in_library = in_process()
                service, steps = through_the_service(deployment)
                runs.append(
                    {
                        "service_seconds": service,
                        "steps_seconds": steps,
                        "library_seconds": library,
                        # Both ways take the same steps; their speed differs by noise, which is taken out here.
                        "service_share": 1 - (library - steps_in_library + steps) / service,
                        "not_steps_share": 1 - steps / service,
                    }
                )
    medians = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    spread = {name: [round(run[name], 4) for run in runs] for name in ("service_share", "not_steps_share")}
    report({"benchmark": "overhead", "study": STUDY, "repeats": options.repeats, **medians, "all": spread})


def in_process() -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", IN_PROCESS, json.dumps(STUDY)], check=True, capture_output=True, text=True
    )
    wall, steps = json.loads(done.stdout)
    return wall, steps


def through_the_service(deployment: Deployment) -> tuple[float, float]:
    client = deployment.client()
    study = client.create_study(STUDY)
    times: dict[str, Any] = {event.kind: event.created_at for event in client.events(study.id)}
    found = client.get_recommendation(study.id)
    return (times["succeeded"] - times["acquired"]).total_seconds(), found.train_seconds


if __name__ == "__main__":
    main()
