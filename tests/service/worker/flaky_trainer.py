"""The real training program with one fault put in, named by the first argument.

The second argument is a file: a fault that strikes once leaves it behind and spares the next process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from service.launchers import trainer
from tuner.errors import TunerError

fault, marker = sys.argv[1], Path(sys.argv[2])
answer: Callable[[Mapping[str, Any], Any], Iterator[Any]] = trainer._answer


class BlamedError(TunerError):
    trial_id = ""


def raise_memory_error(cohort: Mapping[str, Any]) -> None:
    error = MemoryError("out of memory")
    error.trial_id = cohort["trials"][-1]["id"]  # type: ignore[attr-defined]
    raise error


def blame_last_trial(cohort: Mapping[str, Any]) -> None:
    error = BlamedError("the batch has the wrong shape")
    error.trial_id = cohort["trials"][-1]["id"]
    raise error


FAULTS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "raise": lambda cohort: (_ for _ in ()).throw(ValueError("no good")),
    "exit": lambda cohort: os._exit(9),
    "kill": lambda cohort: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda cohort: time.sleep(600),
    "oom-of-one": raise_memory_error,
    "bug-of-one": blame_last_trial,
}


def flawed(request: Mapping[str, Any], rehearsals: Any) -> Iterator[Any]:
    name, _, how_often = fault.partition(":")
    if request["kind"] == "probe" and name == "raise-in-probe":
        raise ValueError("no good\nin the second line")
    if request["kind"] == "cohort" and name == "exit-after-results" and not marker.exists():
        marker.touch()
        for message in answer(request, rehearsals):
            yield message
            if message.kind == "trial" and message.trial_id == request["cohort"]["trials"][-2]["id"]:
                os._exit(7)
    if request["kind"] == "cohort" and name in FAULTS:
        # "of-one" faults are about a trial, so they strike until that trial is gone: more than one is left.
        spared = how_often == "once" and marker.exists()
        spared = spared or (how_often == "until-one-is-gone" and len(request["cohort"]["trials"]) < 4)
        if not spared:
            marker.touch()
            FAULTS[name](request["cohort"])
    if request["kind"] == "cohort" and name == "silent":
        return
    yield from answer(request, rehearsals)


trainer._answer = flawed
trainer.main(sys.argv[3:])
