"""The training process: reads requests, trains, tells events. It computes and has no other power.

Requests, one JSON line each on standard input:

- ``{"kind": "describe"}`` answers `Catalogue`;
- ``{"kind": "probe", "workload", "parameters", "seeds"}`` answers `ProbeMeasured`;
- ``{"kind": "cohort", "cohort": ..., "checkpoints": ...}`` (`Cohort.to_json`; an absolute folder of the cohort's
  own, or null) answers the cohort's events; it goes on from the newest checkpoint there by itself.

Each ends with `Done`, or with `Broken` if user code raised. Closing standard input ends the process at once,
in the middle of a step if need be: that is how a killed worker takes its trainings with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

_STARTED = time.monotonic()
#: Without a request for so long, a process makes itself ready for one; a study that is submitted at once is not held
#: up by that.
_IDLE_SECONDS = 1.0


def main(arguments: list[str] | None = None) -> None:
    """Serve requests until standard input closes."""
    parser = argparse.ArgumentParser(prog="service.launchers.trainer")
    parser.add_argument("--events", type=int, required=True, help="file descriptor for the events")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for torch, 0 = its own choice")
    options = parser.parse_args(arguments)
    # Started before torch is imported, so that a worker that dies meanwhile is noticed too.
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    with os.fdopen(options.events, "wb") as events:
        _serve(requests, events, options.threads)


def _read_requests(requests: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    # The worker is gone, and with it whoever would remove this process's folder; only an empty one is removed.
    with contextlib.suppress(OSError):
        os.rmdir(os.getcwd())
    os._exit(3)


def _serve(requests: queue.Queue[bytes], events: Any, threads: int) -> None:
    import torch

    from service.launchers.protocol import Broken, Done, Ready, encode

    if threads:
        torch.set_num_threads(threads)

    def tell(message: Any) -> None:
        events.write(encode(message))
        events.flush()

    tell(
        Ready(
            pid=os.getpid(),
            torch=torch.__version__,
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=torch.get_num_threads(),
            seconds=time.monotonic() - _STARTED,
        )
    )
    # After `Ready`: a worker that starts need not wait for these imports.
    from tuner.training.memory import is_out_of_memory
    from tuner.training.rehearsals import Rehearsals

    rehearsals = Rehearsals()
    while True:
        request = json.loads(_next_request(requests))
        try:
            for message in _answer(request, rehearsals):
                tell(message)
        except Exception as error:
            tell(
                Broken(
                    cause="oom" if any(map(is_out_of_memory, (error, error.__cause__))) else "bug",
                    detail=f"{type(error).__name__}: {error}"[:2000],
                    traceback=traceback.format_exc()[-8000:],
                    trial_id=getattr(error, "trial_id", None),
                )
            )
        else:
            tell(Done())


def _next_request(requests: queue.Queue[bytes]) -> bytes:
    """Wait for a request; while none comes, import what the batched training of some models needs.

    Not in a thread: a request that imports modules of its own meanwhile would find some of PyTorch's half imported.
    """
    try:
        return requests.get(timeout=_IDLE_SECONDS)
    except queue.Empty:
        import torch._dynamo  # noqa: F401
    return requests.get()


def _answer(request: Mapping[str, Any], rehearsals: Any) -> Iterator[Any]:
    """The messages of one request, without the closing `Done`; what was rehearsed serves the next request too."""
    from pathlib import Path

    import torch

    from service.launchers.protocol import Catalogue
    from tuner.search.halving import halving
    from tuner.training.checkpoint import Checkpoints
    from tuner.training.cohort import Cohort, ProbeMeasured
    from tuner.training.loop import train_cohort
    from tuner.training.probe import measure_reference
    from tuner.workloads.registry import create_workload, describe_workloads

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if request["kind"] == "describe":
        yield Catalogue(workloads=describe_workloads())
    elif request["kind"] == "probe":
        workload = create_workload(request["workload"], request["parameters"])
        yield ProbeMeasured(reference=measure_reference(workload, request["seeds"], device=device))
    else:
        cohort = Cohort.from_json(request["cohort"])
        workload = create_workload(cohort.workload, cohort.parameters)
        folder = request.get("checkpoints")
        kept = None if folder is None else Checkpoints(Path(folder))
        yield from train_cohort(
            cohort,
            workload,
            prune=halving(cohort.rung_steps, cohort.clips),
            checkpoints=kept,
            device=device,
            rehearsals=rehearsals,
        )


if __name__ == "__main__":
    main()
