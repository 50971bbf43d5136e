"""A command on its leash: listened to, ended with all that it started, and ended with whoever started it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from liveness import is_running

from service.agent.child import Child, Ending

ROOT = Path(__file__).parents[3]


def python(program: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(program)]


def child(
    command: list[str],
    *,
    on_line: Callable[[bytes], None] = lambda line: None,
    outlets: tuple[BinaryIO | None, BinaryIO | None] = (None, None),
    grace: float = 5.0,
    environment: dict[str, str] | None = None,
) -> Child:
    return Child(
        command,
        environment=dict(os.environ) if environment is None else environment,
        grace_seconds=grace,
        on_line=on_line,
        outlets=outlets,
    )


def ending(running: Child, seconds: float = 60.0) -> Ending:
    found = running.wait(seconds)
    assert found is not None, "the command has not ended"
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def written_pid(file: Path) -> int:
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "no process was started")
    return int(file.read_text())


def test_arguments_arrive_as_they_are() -> None:
    hostile = ["a b", "'\"", ";ls $(id) `id`", "new\nline", "{x}", "", "*", "-c", "--", "\u00e9\u4e16"]
    lines: list[bytes] = []
    with child(
        [*python("import sys; print(ascii(sys.argv[1:]))"), *hostile], on_line=lines.append
    ) as running:
        assert ending(running) == Ending(status=0)
        running.close()
    assert lines[0] == ascii(hostile).encode()


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("raise ValueError('x')", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 11)", -11),
    ],
)
def test_ending(program: str, status: int) -> None:
    with child(python(program)) as running:
        assert ending(running) == Ending(status=status)
        assert ending(running) == Ending(status=status)


@pytest.mark.parametrize(
    ("command", "says"),
    [("no-such-program-anywhere", "No such file or directory"), ("/", "Permission denied")],
)
def test_command_that_can_not_be_started(command: str, says: str) -> None:
    with child([command]) as running:
        assert ending(running) == Ending(status=None, error=says)


def test_argument_that_no_program_can_get() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="null byte"):
        child(["true", "a\0b"])
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_stays_open_and_no_thread_runs_on() -> None:
    import threading

    threads, before = threading.active_count(), set(os.listdir("/proc/self/fd"))
    for program in ("print('x')", "import time; time.sleep(100)"):
        with child(python(program)) as running:
            running.wait(0.2)
        running.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


def test_surroundings_are_those_that_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder it is started in may hold anything, modules named like those of the standard library too."""
    for name in ("signal", "threading", "subprocess", "service"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    lines: list[bytes] = []
    program = "import os, sys; print(os.getcwd(), sorted(os.environ), repr(sys.stdin.read()))"
    command = [sys.executable, "-I", "-c", program]
    environment = {"PATH": os.environ["PATH"], "MINE": "x", "LC_CTYPE": "C.UTF-8"}
    with child(command, on_line=lines.append, environment=environment) as running:
        assert ending(running) == Ending(status=0)
        running.close()
        assert "wrong module" not in running.tail
    assert lines[0].decode() == f"{tmp_path} ['LC_CTYPE', 'MINE', 'PATH'] ''"


def test_signals_have_their_default_effect_in_the_command() -> None:
    program = """
        import signal
        print([signal.getsignal(each) == signal.SIG_DFL for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)])
    """
    lines: list[bytes] = []
    command = [sys.executable, "-c", textwrap.dedent(program).replace("signal.SIGPIPE", "signal.SIGUSR1")]
    with child(command, on_line=lines.append) as running:
        ending(running)
        running.close()
    assert lines[0] == b"[True, True, True]"


def test_outputs_are_passed_on_and_kept_apart() -> None:
    out, err = io.BytesIO(), io.BytesIO()
    lines: list[bytes] = []
    program = """
        import sys
        for number in range(100):
            print("out", number)
        sys.stderr.write("50%\\r100%\\nno end")
    """
    with child(python(program), on_line=lines.append, outlets=(out, err)) as running:
        ending(running)
        running.close()
    assert out.getvalue() == b"".join(b"out %d\n" % number for number in range(100))
    assert err.getvalue() == b"50%\r100%\nno end"
    assert [line for line in lines if line] == [b"out %d" % number for number in range(100)]
    tail = running.tail.splitlines()
    assert len(tail) == 40
    assert {"100%", "no end", "out 99"} <= set(tail)


def test_reader_that_is_gone_does_not_stop_the_command() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb", buffering=0) as outlet:
        lines: list[bytes] = []
        program = "for number in range(100_000): print(number)"
        with child(python(program), on_line=lines.append, outlets=(outlet, None)) as running:
            assert ending(running) == Ending(status=0)
            running.close()
    assert lines[-2] == b"99999"


def test_flood_of_output_takes_no_memory() -> None:
    """A gigabyte, part of it in one line; this process grows by less than a tenth of that."""
    program = """
        import os
        line, block = b"x" * 99 + b"\\n", b"y" * 1_000_000
        for _ in range(500):
            os.write(1, block)
        os.write(1, b"\\n")
        for _ in range(500):
            for start in range(0, 1_000_000, 100_000):
                os.write(1, line * 1000)
        os.write(2, b"the end\\n")
    """
    command = python(program)
    script = f"""
        import os, resource, sys
        sys.path.insert(0, {str(ROOT)!r})
        from service.agent.child import Child
        lines = []
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        count = 0
        def on_line(line):
            global count
            count += 1
        options = dict(grace_seconds=5, on_line=on_line, outlets=(None, None))
        with Child({command!r}, environment=dict(os.environ), **options) as child:
            assert child.wait(500).status == 0
            child.close()
            print(count, child.tail.splitlines()[-1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(python(script), capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    count, *last, grown = done.stdout.split()
    assert " ".join(last) in ("the end", "x" * 99)
    # Half of it is one line, which is passed over; the empty end of the stream counts as one.
    assert int(count) in range(5_000_000, 5_000_003)
    assert int(grown) < 100_000, "kilobytes"


def test_stop_reaches_everything_in_the_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sh -c 'echo $$ > {pid_file}; exec sleep 1000' & wait"
    with child(["sh", "-c", script]) as running:
        grandchild = written_pid(pid_file)
        running.stop()
    wait_until(lambda: not is_running(grandchild), "the grandchild lives on")


def test_command_may_clean_up_within_the_grace_period() -> None:
    program = """
        import signal, time
        def clean_up(*_):
            print("cleaned up", flush=True)
            raise SystemExit(0)
        signal.signal(signal.SIGTERM, clean_up)
        print("ready", flush=True)
        time.sleep(1000)
    """
    lines: list[bytes] = []
    with child(python(program), on_line=lines.append) as running:
        wait_until(lambda: b"ready" in lines, "the command never began")
        running.stop()
    assert b"cleaned up" in lines


def test_command_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ > {pid_file}; while true; do sleep 1; done"
    with child(["sh", "-c", script], grace=0.2) as running:
        pid = written_pid(pid_file)
        running.stop()
    wait_until(lambda: not is_running(pid), "the command lives on")


def test_grandchild_that_holds_the_pipe_does_not_hold_us_up(tmp_path: Path) -> None:
    """One in the group is killed with it; one that left the group lives on, and is not waited for."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    script = (
        f"sh -c 'echo $$ > {inside}; exec sleep 1000' & "
        f"setsid sh -c 'echo $$ > {outside}; exec sleep 1000' & "
        f"while [ ! -s {inside} ] || [ ! -s {outside} ]; do sleep 0.01; done; echo done"
    )
    lines: list[bytes] = []
    with child(["sh", "-c", script], on_line=lines.append) as running:
        assert ending(running) == Ending(status=0)
    try:
        assert b"done" in lines
        wait_until(lambda: not is_running(written_pid(inside)), "the grandchild lives on")
        assert is_running(written_pid(outside))
    finally:
        os.kill(written_pid(outside), signal.SIGKILL)


def test_command_dies_with_a_starter_that_was_killed(tmp_path: Path) -> None:
    """Nobody is left to clean up after SIGKILL; the kernel closes the pipe, and the leash acts."""
    pid_file = tmp_path / "pid"
    command = ["sh", "-c", f"trap '' TERM; echo $$ > {pid_file}; while true; do sleep 1; done"]
    script = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from service.agent.child import Child
        child = Child({command!r}, environment=dict(os.environ), grace_seconds=0.1, on_line=print, outlets=(None, None))
        child.wait(1000)
    """
    with subprocess.Popen(python(script)) as starter:
        pid = written_pid(pid_file)
        starter.kill()
    wait_until(lambda: not is_running(pid), "the command lives on")


def test_leash_that_was_killed_counts_as_a_killed_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = ["sh", "-c", f"echo $PPID > {pid_file}.leash; echo $$ > {pid_file}; exec sleep 1000"]
    with child(command) as running:
        pid = written_pid(pid_file)
        os.kill(int(Path(f"{pid_file}.leash").read_text()), signal.SIGKILL)
        assert ending(running) == Ending(status=-signal.SIGKILL)
    wait_until(lambda: not is_running(pid), "the command lives on")
