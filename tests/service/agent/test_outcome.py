"""What the end of a command means, as a table; and what the kernel says of memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from service.agent.agent import Tally
from service.agent.child import Ending
from service.agent.memory import num_memory_kills
from service.agent.metrics import Measurement, MetricKeys
from service.agent.outcome import Outcome, failed, judge

LAST = Measurement(step=100, value=1.5)


def outcome(
    status: int | None,
    *,
    last: Measurement | None = LAST,
    tail: str = "",
    was_memory_short: bool = False,
    seen_keys: tuple[str, ...] = (),
    num_beyond: int = 0,
) -> Outcome:
    return judge(
        Ending(status=status, error="No such file or directory" if status is None else ""),
        last=last,
        keys=MetricKeys(objective="val_loss"),
        seen_keys=seen_keys,
        num_beyond=num_beyond,
        num_steps=100,
        tail=tail,
        was_memory_short=was_memory_short,
    )


def test_good_end_gives_the_last_value() -> None:
    assert outcome(0) == Outcome(kind="complete", value=1.5)
    assert outcome(0, tail="MemoryError", was_memory_short=True).kind == "complete"
    assert outcome(0, last=Measurement(step=3, value=math.nan)).kind == "diverged"


@pytest.mark.parametrize(
    ("status", "tail", "was_memory_short", "cause", "says"),
    [
        (1, "", False, "bug", "the command ended with exit code 1"),
        (1, "ValueError: x", False, "bug", "exit code 1: ValueError: x\nValueError: x"),
        (-15, "", False, "bug", "SIGTERM"),
        (-11, "", False, "bug", "SIGSEGV"),
        (-60, "", False, "bug", "signal 60"),
        (-9, "", False, "device_lost", "killed by SIGKILL, which was not ours"),
        (137, "", False, "device_lost", "killed by SIGKILL, which was not ours"),
        (-9, "", True, "oom", "because memory ran out"),
        (137, "", True, "oom", "because memory ran out"),
        (1, "", True, "bug", "exit code 1"),
        (1, "Traceback\nMemoryError", False, "oom", "exit code 1"),
        (1, "MemoryError\nValueError: MemoryError", False, "bug", "exit code 1"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", False, "oom", "exit code 1"),
        (1, "RuntimeError: [enforce fail] can't allocate memory: you tried", False, "oom", "exit code 1"),
        (None, "", False, "bug", "can't be started: No such file or directory"),
    ],
)
def test_bad_end_has_a_cause(
    status: int | None, tail: str, was_memory_short: bool, cause: str, says: str
) -> None:
    found = outcome(status, tail=tail, was_memory_short=was_memory_short)
    assert (found.kind, found.cause) == ("failed", cause)
    assert says in found.detail


@pytest.mark.parametrize(
    ("seen_keys", "num_beyond", "says"),
    [
        ((), 0, "never logged the objective 'val_loss'; it logged no number beside 'step'"),
        (("loss", "eval_loss"), 0, "it logged loss, eval_loss: name the right key with --objective-key"),
        (("val_loss",), 3, "only beyond the study's 100 steps: train for {num_steps} steps"),
    ],
)
def test_missing_objective_says_what_there_was(
    seen_keys: tuple[str, ...], num_beyond: int, says: str
) -> None:
    found = outcome(0, last=None, seen_keys=seen_keys, num_beyond=num_beyond)
    assert found.cause == "bad_output"
    assert says in found.detail


def test_error_text_is_bounded() -> None:
    found = outcome(1, tail="x" * 100_000)
    assert len(found.detail) < 8000


@pytest.mark.parametrize(
    ("kinds", "says", "has_only_failed"),
    [
        ([], "0 lanes: 0 trained, 0 stopped early, 0 failed", False),
        (["complete"], "1 lane: 1 trained, 0 stopped early, 0 failed", False),
        (["failed", "failed"], "2 lanes: 0 trained, 0 stopped early, 2 failed", True),
        (
            ["complete", "stopped", "failed", "diverged"],
            "4 lanes: 1 trained, 1 stopped early, 1 failed, 1 diverged",
            False,
        ),
    ],
)
def test_tally(kinds: list[str], says: str, has_only_failed: bool) -> None:
    tally = Tally()
    for kind in kinds:
        tally.count(failed("bug", "x") if kind == "failed" else Outcome(kind=kind, value=1.0))  # type: ignore[arg-type]
    assert (str(tally), tally.has_only_failed) == (says, has_only_failed)


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        ("0::/pod/x\n", {"pod/x/memory.events": "low 0\noom 3\noom_kill 2\n"}, 2),
        ("0::/pod/x\n", {"memory.events": "oom_kill 5\n"}, 5),
        (
            "4:cpu,memory:/pod\n3:pids:/\n",
            {"memory/pod/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"},
            1,
        ),
        ("4:memory:/pod\n", {"memory/memory.oom_control": "oom_kill 4\n"}, 4),
        ("0::/pod/x\n", {"pod/x/memory.events": "low 0\n"}, None),
        ("0::/pod/x\n", {}, None),
        ("3:pids:/\n", {"memory.events": "oom_kill 5\n"}, None),
    ],
)
def test_memory_kills_as_the_kernel_counts_them(
    tmp_path: Path, membership: str, files: dict[str, str], count: int | None
) -> None:
    (tmp_path / "self").write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert num_memory_kills(tmp_path, tmp_path / "self") == count


def test_nothing_to_read_is_no_count(tmp_path: Path) -> None:
    assert num_memory_kills(tmp_path, tmp_path / "no-such-file") is None
