"""A training program that speaks the protocol and waits instead of training: its objectives are a formula.

``FOLDER`` (first argument) is where tests leave orders: ``slow-SLOT`` holds seconds per rung, ``kill`` a number of
processes that kill themselves at their second rung, ``hang`` and ``orphan`` likewise, ``mute`` of those that never end
a probe, ``lost`` of those that kill themselves while they measure how lanes train, ``mum`` of those that never tell
what they measured, ``asks`` of those that ask for it without end and hear nothing; ``late`` holds seconds between the
last event of a cohort and its end; with ``quiet`` no progress is told. Every process writes what it did to ``log``.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from service.launchers.protocol import Done, PathWanted, Pending, Ready, encode
from tuner.evidence import LaneRecord, LaneResult, NormSketch, Reference
from tuner.training.cohort import (
    CheckpointSaved,
    Cohort,
    EngineChosen,
    LaneValue,
    PartReached,
    ProbeMeasured,
    Progressed,
    Resumed,
    TrialEnded,
)

ORDERS, SLOT = Path(sys.argv[1]), sys.argv[2]
OUT = os.fdopen(int(sys.argv[sys.argv.index("--events") + 1]), "wb")


def tell(message: Any) -> None:
    OUT.write(encode(message))
    OUT.flush()


def note(**what: Any) -> None:
    with (ORDERS / "log").open("a") as log:
        log.write(json.dumps({"slot": SLOT, "pid": os.getpid(), "time": time.monotonic(), **what}) + "\n")


def ordered(name: str) -> bool:
    """Whether one of so many orders is left; takes it."""
    for order in sorted(ORDERS.glob(f"{name}-*")):
        try:
            order.unlink()
        except FileNotFoundError:
            continue
        return True
    return False


def value(threshold: float | None, seed: int, step: int) -> float | None:
    """The best threshold is 0.3; without clipping everything diverges in seed 1."""
    if threshold is None:
        return None if seed == 1 else 3.0 + seed / 100
    return 2.0 + abs(math.log(threshold / 0.3)) / 4 + 0.01 * math.sin(7 * seed + 3 * threshold) + 5 / step


def wait_for_the_device() -> Any:
    """With the order ``one-device`` all slots are those of a cluster that has one: wait for it, and say so."""
    if not (ORDERS / "one-device").exists():
        return None
    device = (ORDERS / "one-device").open()
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(Pending(seconds=time.monotonic() - started, detail="every device is busy"))
            time.sleep(0.05)
        else:
            return device


def train(request: dict[str, Any]) -> None:
    cohort, folder = Cohort.from_json(request["cohort"]), Path(request["checkpoints"])
    folder.mkdir(parents=True, exist_ok=True)
    saved = sorted(folder.iterdir())
    first = cohort.rung_steps.index(int(saved[-1].name[:10])) + 1 if saved else 0
    done, path = json.loads((saved[-1] / "manifest.json").read_text()) if saved else (0, ask_path())
    steps, live = cohort.rung_steps, [trial.id for trial in cohort.trials]
    thresholds = {trial.id: trial.setting.threshold for trial in cohort.trials}
    num_lanes = len(live) * len(cohort.seeds)
    note(event="begins", first=first, trials=len(live), seeds=list(cohort.seeds))
    note(event="trains", path=path, num_seeds=len(cohort.seeds))
    if not ordered("mum"):
        tell(EngineChosen(path=path, num_lanes=1, reason="nothing is trained here"))
    if first:
        tell(Resumed(index=first - 1, step=steps[first - 1], lane_steps=done, seconds=0.0))
        live = ask(cohort, first - 1, live, thresholds)
    for index in range(first, len(steps)):
        if not live:
            return
        pace = ORDERS / f"slow-{SLOT}"
        time.sleep(float(pace.read_text()) if pace.exists() else 0.0)
        if index and ordered("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if index and ordered("orphan"):
            # What it started keeps its pipes open, as a data loader's processes do.
            if os.fork():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        if index and ordered("hang"):
            time.sleep(600)
        done += len(live) * len(cohort.seeds) * (steps[index] - (steps[index - 1] if index else 0))
        if not (ORDERS / "quiet").exists():
            tell(Progressed(lane_steps=done, total_lane_steps=num_lanes * steps[-1], step=steps[index]))
        if index < len(steps) - 1:
            # As real ones are called.
            named = folder / f"{steps[index]:010d}-{os.urandom(6).hex()}"
            named.mkdir()
            (named / "manifest.json").write_text(json.dumps([done, path]))
            tell(CheckpointSaved(index=index, step=steps[index], num_bytes=1, seconds=0.0))
        live = ask(cohort, index, live, thresholds)
    note(event="ends")


def ask_path() -> Any:
    """How lanes train; whoever measures it on another slot finds something else."""
    tell(PathWanted())
    if ordered("asks"):
        while True:
            tell(PathWanted())
    answer = json.loads(sys.stdin.readline())
    assert answer["kind"] == "path"
    if answer["path"] is None:
        note(event="measures")
        if ordered("lost"):
            os.kill(os.getpid(), signal.SIGKILL)
    return answer["path"] or ("lanes" if SLOT.endswith("0") else "solo")


def ask(cohort: Cohort, index: int, live: list[str], thresholds: dict[str, float | None]) -> list[str]:
    """Tell a rung, wait for the decision, end what ends; what goes on."""
    step = cohort.rung_steps[index]
    values = tuple(
        LaneValue(trial_id=trial, seed=seed, value=value(thresholds[trial], seed, step))
        for trial in live
        for seed in cohort.seeds
    )
    tell(PartReached(index=index, step=step, values=values))
    is_last = index == len(cohort.rung_steps) - 1
    pruned = live if is_last else json.loads(sys.stdin.readline())["pruned"]
    for trial in [each for each in live if each in pruned]:
        lanes = tuple(lane(thresholds[trial], seed, step) for seed in cohort.seeds)
        tell(TrialEnded(trial_id=trial, state="complete" if is_last else "pruned", lanes=lanes))
    return [trial for trial in live if trial not in pruned]


def lane(threshold: float | None, seed: int, step: int) -> LaneResult:
    found = value(threshold, seed, step)
    fraction = 0.0 if threshold is None else min(1.0, 0.1 / threshold)
    record = LaneRecord(
        num_steps=step,
        divergence_step=None,
        clip_fraction=fraction,
        mean_scale=1.0 - fraction / 2,
        norms=NormSketch.of([0.1, 0.3, 1.5]),
        num_non_finite=0,
        first_clipped_step=None if threshold is None else 0,
    )
    return LaneResult.of(
        record,
        seed=seed,
        value=found,
        divergence_step=step if found is None else None,
        seconds=0.0,
    )


tell(Ready(pid=os.getpid(), torch="0", device="cpu", threads=1, seconds=0.0))
while line := sys.stdin.readline():
    given = json.loads(line)
    if given["kind"] == "cohort":
        held = wait_for_the_device()
        train(given)
        if held is not None:
            held.close()
        late = ORDERS / "late"
        time.sleep(float(late.read_text()) if late.exists() else 0.0)
    elif given["kind"] == "probe":
        norms = NormSketch.of([0.1, 0.2, 0.3, 0.4, 1.5])
        note(event="probes")
        if ordered("mute"):
            time.sleep(600)
        tell(ProbeMeasured(reference=Reference(l2_norm=norms, max_abs=norms, num_batches=5)))
    tell(Done())
