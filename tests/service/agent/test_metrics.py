"""What of a program's output is a metric, and what of the metrics is worth a report."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.agent.lines import LineSplitter
from service.agent.metrics import MAX_WAITING_NORMS, Measurement, MetricKeys, Metrics, Report

KEYS = MetricKeys(objective="val_loss")
RUNGS = (44, 133, 400)


def metrics(keys: MetricKeys = KEYS) -> Metrics:
    return Metrics(keys, RUNGS, RUNGS[-1])


def line(**figures: Any) -> bytes:
    return json.dumps(figures).encode()


@given(st.lists(st.binary(max_size=20)), st.integers(min_value=1, max_value=8))
def test_lines_are_those_of_the_whole_stream(chunks: list[bytes], limit: int) -> None:
    splitter = LineSplitter(max_bytes=limit)
    found = [each for chunk in chunks for each in splitter.feed(chunk)]
    *whole, rest = b"".join(chunks).split(b"\n")
    assert found == [each for each in whole if len(each) <= limit]
    assert splitter.rest() == (rest if len(rest) <= limit else b"")
    assert splitter.feed(b"x\n") == [b"x"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"epoch 3",
        b"{",
        b"{}",
        b"[1, 2]",
        b"{'step': 3, 'val_loss': 1.0}",
        b'{"step": 3, "val_loss": 1.0',
        b'{"val_loss": 1.0}',
        b'{"step": "3", "val_loss": 1.0}',
        b'{"step": true, "val_loss": 1.0}',
        b'{"step": -1, "val_loss": 1.0}',
        b'{"step": 1.5, "val_loss": 1.0}',
        b'{"step": NaN, "val_loss": 1.0}',
        b'{"step": Infinity, "val_loss": 1.0}',
        b'{"step": 3, "val_loss": "1.0"}',
        b'{"step": 3, "val_loss": true}',
        b'{"step": 3, "val_loss": null}',
        b'{"step": 3, "val_loss": {"mean": 1.0}}',
        b"{" + b'"a":[' * 100_000 + b"}",
        b'{"step": ' + b"9" * 5000 + b', "val_loss": 1.0}',
        b"\xff\xfe{}",
    ],
)
def test_line_without_a_measurement_is_just_output(text: bytes) -> None:
    found = metrics()
    found.read_line(text)
    assert found.take(norms_alone=True, is_final=True) == []
    assert found.last is None


@pytest.mark.parametrize(
    ("text", "step", "value"),
    [
        (b'{"step": 3, "val_loss": 1.25}', 3, 1.25),
        (b'  {"step": 3.0, "val_loss": 2, "other": [1]}\r', 3, 2.0),
        (b'{"step": 0, "val_loss": -0.5}', 0, -0.5),
        (b'{"step": 3, "val_loss": Infinity}', 3, math.inf),
        (b'{"step": 3, "val_loss": -Infinity}', 3, -math.inf),
        (b'{"step": 3, "val_loss": 1' + b"0" * 400 + b"}", 3, math.inf),
    ],
)
def test_objective_of_a_json_line(text: bytes, step: int, value: float) -> None:
    found = metrics()
    found.read_line(text)
    assert found.take() == [Report(step=step, value=value)]


def test_nan_is_diverged() -> None:
    found = metrics()
    found.read_line(b'{"step": 3, "val_loss": NaN}')
    assert found.last is not None and found.last.is_diverged


def test_other_names_and_what_was_seen() -> None:
    found = metrics(MetricKeys(objective="eval/loss", norm="train/norm", step="global_step"))
    found.read_line(line(step=1, val_loss=3.0))
    found.read_line(line(global_step=2, loss=2.0, **{"train/norm": 0.5}))
    found.read_line(line(global_step=3, **{"eval/loss": 1.5}))
    assert found.seen_keys == ("loss", "train/norm", "eval/loss")
    assert found.take() == [Report(step=3, value=1.5, norms=(0.5,))]


def test_newest_value_is_told_and_the_first_at_or_after_each_rung() -> None:
    found = metrics()
    for step in range(10, 200, 10):
        found.add("val_loss", step, step / 100)
    assert [each.step for each in found.take()] == [50, 140, 190]
    found.add("val_loss", 200, 2.0)
    found.add("val_loss", 400, 4.0)
    assert [each.step for each in found.take()] == [400]


def test_value_before_the_first_step_is_told() -> None:
    found = metrics()
    for step in (0, 1, 2):
        found.add("val_loss", step, 1.0)
    assert [each.step for each in found.take()] == [0, 2]


def test_rung_that_was_told_before_is_not_kept_again() -> None:
    found = metrics()
    found.add("val_loss", 44, 1.0)
    assert [each.step for each in found.take()] == [44]
    for step in (45, 46, 47):
        found.add("val_loss", step, 1.0)
    assert [each.step for each in found.take()] == [47]


@given(st.lists(st.integers(min_value=0, max_value=400)), st.sets(st.integers(min_value=0, max_value=60)))
def test_rungs_are_never_lost_whenever_reports_are_made(steps: list[int], pauses: set[int]) -> None:
    """Whoever hears the reports sees at each rung what someone sees who hears everything."""
    found, told, rising = metrics(), [], []
    for position, step in enumerate(steps):
        found.add("val_loss", step, float(position))
        if not rising or step > rising[-1]:
            rising.append(step)
        if position in pauses:
            told += found.take()
    told += found.take()
    assert [each.step for each in told] == sorted({each.step for each in told})
    for rung in RUNGS:
        first = next((step for step in rising if step >= rung), None)
        assert next((each.step for each in told if each.step >= rung), None) == first
    assert (told[-1].step if told else None) == (rising[-1] if rising else None)


def test_value_logged_again_for_a_step_that_waits_replaces_it() -> None:
    found = metrics()
    found.add("val_loss", 5, 1.0)
    found.add("val_loss", 5, 2.0)
    assert found.take() == [Report(step=5, value=2.0)]
    found.add("val_loss", 5, 3.0)
    found.add("val_loss", 4, 3.0)
    assert found.take() == []
    assert found.last == Measurement(step=5, value=2.0)


def test_diverged_value_is_told_even_if_others_follow() -> None:
    found = metrics()
    found.add("val_loss", 5, math.inf)
    found.add("val_loss", 6, 1.0)
    assert [each.step for each in found.take()] == [5, 6]


def test_steps_beyond_the_run_are_counted_and_left_out() -> None:
    found = metrics()
    found.add("val_loss", 400, 1.0)
    found.add("val_loss", 401, 0.5)
    assert (found.last, found.num_beyond) == (Measurement(step=400, value=1.0), 1)
    assert [each.step for each in found.take()] == [400]


def test_norms_go_along_with_the_measurement_at_or_after_their_step() -> None:
    found = metrics()
    for step in range(1, 61):
        found.add("grad_norm", step, float(step))
        if step in (40, 50):
            found.add("val_loss", step, 1.0)
    (first,) = found.take()
    # Step 40 reaches no rung, so that step 50 took its place; its norms are not lost.
    assert (first.step, first.norms) == (50, tuple(map(float, range(1, 51))))
    (second,) = found.take(is_final=True)
    assert (second.step, second.value, second.norms) == (60, None, tuple(map(float, range(51, 61))))


def test_norms_alone_leave_the_newest_step_for_its_objective() -> None:
    found = metrics()
    for step in (1, 2, 3):
        found.add("grad_norm", step, float(step))
    assert found.take() == []
    assert found.take(norms_alone=True) == [Report(step=2, value=None, norms=(1.0, 2.0))]
    found.add("val_loss", 3, 1.0)
    assert found.take() == [Report(step=3, value=1.0, norms=(3.0,))]


def test_norms_that_are_not_finite_or_too_many_are_left_out() -> None:
    found = metrics()
    for value in (math.nan, math.inf, -1.0):
        found.add("grad_norm", 1, value)
    assert found.take(is_final=True) == []
    for number in range(2 * MAX_WAITING_NORMS):
        found.add("grad_norm", 1, float(number))
    (report,) = found.take(is_final=True)
    assert max(report.norms) < MAX_WAITING_NORMS


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1999, 2000, 5555])
def test_report_has_an_even_selection_of_many_norms(count: int) -> None:
    found = metrics()
    for number in range(count):
        found.add("grad_norm", 1, float(number))
    (report,) = found.take(is_final=True)
    assert min(count, 500) <= len(report.norms) <= 1000
    distances = {after - before for before, after in itertools.pairwise(report.norms)}
    assert len(distances) <= 1
    assert report.norms[0] == 0
    assert count - report.norms[-1] <= max(distances, default=1)


def test_number_of_remembered_names_is_bounded() -> None:
    found = metrics()
    for index in range(100):
        found.add(f"figure-{index}", 1, 1.0)
    assert len(found.seen_keys) == 30


def test_silence_ends_with_objective_or_norm_alone() -> None:
    found = metrics()
    began = found.seen_at
    found.add("loss", 1, 1.0)
    found.read_line(b"just output")
    assert found.seen_at == began
    found.add("grad_norm", 1, math.nan)
    assert found.seen_at > began
