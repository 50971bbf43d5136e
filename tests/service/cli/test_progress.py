"""The view of a running study: events folded one by one, and what a log shows of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from service.cli.following import follow
from service.cli.progress import StudyView
from service.schemas import EventOut, StudyOut
from service.states import JobState
from tuner.spec import StudySpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = StudySpec(workload="digits-mlp", num_trials=4, num_seeds=2, num_steps=90)
STUDY = StudyOut(
    id="7f3c0000-0000-4000-8000-000000000000",
    name=None,
    state=JobState.QUEUED,
    done=False,
    workload="digits-mlp",
    spec=SPEC.to_json(),
    fingerprint=SPEC.fingerprint,
    created_at=NOW,
    started_at=None,
    finished_at=None,
    attempt=0,
    num_trials_ended=0,
    result=None,
    error=None,
)
NORMS = {"median": 0.24, "q90": 0.4, "q99": 0.5, "max": 1.31}


def event(event_id: int, kind: str, **payload: Any) -> EventOut:
    return EventOut(id=event_id, kind=kind, created_at=NOW, payload=payload)


def trial(
    number: int, name: str, mean: float | None, *, method: str = "global_norm", diverged: int = 0
) -> EventOut:
    threshold = None if method == "none" else 0.5
    setting = {"method": method, "threshold": threshold}
    return event(
        number,
        "trial",
        trial_id=name,
        number=0,
        setting=setting,
        state="complete",
        mean=mean,
        num_diverged=diverged,
    )


STREAM = [
    event(1, "queued"),
    event(2, "acquired", owner="w", attempt=1),
    event(3, "training_started", pid=1, device="cpu", torch="2", seconds=1.0),
    event(4, "probe", reference={"l2_norm": NORMS, "max_abs": NORMS, "num_batches": 64}),
    event(5, "cohort", cohort=0, trials=[{"id": name} for name in "abcd"], seeds=[0, 1], rung_steps=[30, 90]),
    event(6, "progress", cohort=0, lane_steps=360, total_lane_steps=720, step=45),
    event(
        7,
        "rung",
        cohort=0,
        index=0,
        step=30,
        num_rungs=2,
        values=[
            {"trial_id": "a", "mean": 1.5, "num_diverged": 0},
            {"trial_id": "b", "mean": None, "num_diverged": 2},
        ],
        pruned=["b"],
    ),
    trial(8, "a", 1.25),
    trial(9, "b", None, method="none", diverged=2),
    event(10, "something_new", of="a later server"),
    event(11, "succeeded"),
]


def folded(count: int) -> StudyView:
    view = StudyView(STUDY)
    for each in STREAM[:count]:
        view = view.fold(each)
    return view


def test_header_names_the_study() -> None:
    assert StudyView(STUDY).header() == "study 7f3c0000   digits-mlp   4 settings x 2 seeds, 90 steps"


def test_norms_are_called_before_clipping() -> None:
    assert folded(4).probe == (
        "median norm 0.24   q90 0.4   max 1.31   (before clipping)   "
        "rule of thumb global_norm:0.4, clipping may help"
    )


def test_probe_tells_spikes_tail_and_a_rule_of_thumb() -> None:
    measured = {
        "l2_norm": NORMS,
        "max_abs": NORMS,
        "num_batches": 102,
        "spike_ratio": 5.46,
        "tail_index": 1.5,
    }
    line = StudyView(STUDY).fold(event(4, "probe", reference=measured)).probe
    assert "max 1.31   spike ratio 5.46   tail index 1.5   (before clipping)" in line
    assert line.endswith("rule of thumb global_norm:0.4, clipping should help")


def test_share_counts_running_and_ended_settings() -> None:
    assert folded(5).share == 0.0
    # Four settings run, half of their steps are done.
    assert folded(6).share == 0.5
    # One has ended, three run: (1 + 3 x 0.5) / 4.
    assert folded(8).share == pytest.approx(0.625)


def test_best_and_off_stand_side_by_side() -> None:
    line = folded(9).lines()[-2]
    assert "best so far global_norm:0.5 1.2500" in line
    assert "off all seeds (2 seeds diverged)" in line


def test_unknown_event_changes_nothing() -> None:
    assert folded(10) == folded(9)


@pytest.mark.parametrize(
    ("kind", "payload", "says"),
    [
        ("reaped", {"lost_count": 1}, "worker was lost"),
        ("released", {}, "another one takes over"),
        ("error", {"error": "Traceback\nValueError: no"}, "ValueError: no"),
        ("cancel_requested", {}, "cancel requested"),
        ("succeeded", {}, "done"),
        (
            "failed",
            {"error": "Traceback\nStudyFailedError: 6 trials failed"},
            "failed: StudyFailedError: 6 trials",
        ),
        ("failed", {}, "no reason given"),
        ("cancelled", {}, "cancelled"),
        ("trial_failed", {"trial_id": "a", "error": "out of memory"}, "out of memory"),
    ],
)
def test_status_says_what_happened(kind: str, payload: dict[str, Any], says: str) -> None:
    assert says in folded(6).fold(event(99, kind, **payload)).status


def test_log_has_complete_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    follow(STUDY, iter(STREAM))
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert "\r" not in printed.err and "\x1b" not in printed.err
    assert sum("rung 1/2 at step 30: 2 settings, best 1.5000, 1 stopped" in line for line in lines) == 1
    assert sum("probe" in line for line in lines) == 1


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    follow(STUDY, iter(STREAM), quiet=True)
    assert capsys.readouterr().err == ""


def engine(path: str, reason: str, *rates: float | None, lanes: int = 24) -> EventOut:
    return event(
        20,
        "engine",
        cohort=0,
        path=path,
        num_lanes=lanes,
        reason=reason,
        lanes_per_second=rates[0],
        solo_per_second=rates[1],
    )


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            engine("lanes", "fits", 49.0, 10.0),
            "engine   24 lanes together, 4.9 times as fast as one at a time",
        ),
        (engine("lanes", "the study sets the number", None, None), "engine   24 lanes together"),
        (
            engine("external", "trained by whoever asks for a lane", None, None, lanes=1),
            "engine   trained elsewhere: `cliptune run --study ID -- COMMAND` trains a lane at a time",
        ),
        (engine("solo", "it is faster\nby far", None, None), "engine   one lane at a time: it is faster"),
        (engine("solo", "", None, None), "engine   one lane at a time: no reason given"),
    ],
)
def test_engine_is_told_in_one_line(told: EventOut, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    follow(STUDY, [told, told])
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert line in StudyView(STUDY).fold(told).lines()


def test_resumption_is_told_with_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    resumed = event(21, "resumed", cohort=0, index=1, step=133, lane_steps=400, seconds=0.5, num_rungs=3)
    saved = event(22, "checkpoint", cohort=0, index=1, step=133, num_bytes=10, seconds=0.2)
    failed = event(23, "checkpoint_failed", cohort=0, error="no checkpoint could be written\nmore")
    follow(STUDY, [resumed, saved, failed])
    printed = capsys.readouterr().err.splitlines()
    assert "resumed  from step 133 (checkpoint of rung 2)" in printed
    assert "         a checkpoint failed: no checkpoint could be written" in printed


@pytest.mark.parametrize(
    "changed",
    [
        event(9, "acquired", attempts=1),
        event(9, "acquired", attempt="second"),
        event(9, "trial", mean=0.1, setting={"method": "newer", "threshold": 1.0}),
        event(9, "cohort", cohort=1, trials=None),
        event(9, "probe", reference={"norms": []}),
        event(9, "error", error=None),
    ],
)
def test_event_of_a_newer_service_does_not_end_the_waiting(changed: EventOut) -> None:
    view = StudyView(STUDY).fold(event(1, "training_started", device="cpu"))
    assert view.fold(changed) == view
