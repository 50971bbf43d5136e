"""Run a training process on this machine: start it, talk to it, and be able to kill all of it.

The process leads a session of its own, so that a signal to its group reaches whatever it started. Its
environment is built from an allow-list: no CLIPTUNE_ variable, no credential. It ends by itself when its
standard input closes, which the kernel does even for a worker that was killed with SIGKILL, so a lost worker
leaves no device busy.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from service.errors import TrainingError
from service.launchers.protocol import MAX_LINE_BYTES, Message, Ready, decode, encode

#: Variables a training process may see; prefixes end in an underscore.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_", "OMP_", "MKL_", "TORCH_", "COVERAGE_", "LC_")

#: How long a pipe of a dead process is listened to when it does not end, in seconds.
_SILENCE_SECONDS = 1.0
#: How much of the process's own output is kept for an error report, in lines and in bytes.
_TAIL_LINES, _TAIL_BYTES = 40, 40_000
#: How much of it is read at once, in bytes.
_OUTPUT_BYTES = 65_536


def training_environment(
    environ: Mapping[str, str], import_from: Sequence[str] = (), also: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of a training process: the allow-listed part of the worker's.

    Args:
        environ: the worker's.
        import_from: folders from which modules may be imported, before those of PYTHONPATH.
        also: further names, and prefixes that end in an underscore.

    Returns:
        The variables; folders of PYTHONPATH are absolute, because the process works in a folder of its own.
    """
    prefixes = tuple(each for each in also if each.endswith("_"))
    passed = {
        name: value
        for name, value in environ.items()
        if name in PASSED_ON or name in also or name.startswith((*PASSED_ON_PREFIXES, *prefixes))
    }
    given = passed.get("PYTHONPATH", "")
    folders = [*import_from, *(given.split(os.pathsep) if given else ())]
    if folders:
        passed["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders))
    return passed


def absolute_paths(names: Sequence[str]) -> dict[str, str]:
    """This process's variables that name files, for one that works in another folder.

    Args:
        names: of the variables.

    Returns:
        Those that are set, as absolute paths.
    """
    return {name: os.path.abspath(os.environ[name]) for name in names if os.environ.get(name)}


class TrainingProcess:
    """One training process of a worker; serves requests one after another until it is stopped.

    Args:
        command: the program; the file descriptor for its events is added.
        threads: CPU threads for torch, 0 = torch's choice.
        kill_grace_seconds: time between SIGTERM and SIGKILL.
        import_from: see `training_environment`.
        also: likewise.
        environment: variables of this process alone, which say what device it may see.
        cause: of an end that nobody asked for, as in `TrainingError`: whose fault it would be.

    Attributes:
        pid: id of the process and of its group.
        ready: what it said once torch was imported; None before. One that stands for a cluster passes on what each
            process of a node says, so this is the newest.
        greeting: the first that it said, which is about itself; None before.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        threads: int,
        kill_grace_seconds: float,
        import_from: Sequence[str] = (),
        also: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        cause: str = "bug",
    ) -> None:
        self.ready: Ready | None = None
        self.greeting: Ready | None = None
        self._grace = kill_grace_seconds
        self._cause = cause
        self._folder = tempfile.TemporaryDirectory(
            # What left the process group, as W&B's service does, may write there while it is removed.
            prefix="cliptune-training-",
            ignore_cleanup_errors=True,
        )
        events, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, "--events", str(write_end), "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
                cwd=self._folder.name,
                env=training_environment(os.environ, import_from, also) | dict(environment),
            )
        except OSError:
            os.close(events)
            self._folder.cleanup()
            raise
        finally:
            os.close(write_end)
        self.pid = self._process.pid
        self._stopped_by_us = False
        #: Monotonic time at which it was dead and had nothing more to tell; None before.
        self._silent_since: float | None = None
        self._has_stopped = False
        self._stop_lock = threading.Lock()
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=10_000)
        self._tail = b""
        assert self._process.stdout is not None
        self._threads = [
            threading.Thread(target=self._read_events, args=(os.fdopen(events, "rb"),), daemon=True),
            threading.Thread(target=self._read_output, args=(self._process.stdout,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, request: Mapping[str, Any]) -> None:
        """Hand over a request.

        Args:
            request: plain JSON values; see `service.launchers.trainer`.

        Raises:
            TrainingError: if the process is gone.
        """
        self.send_line(encode(request))

    def send_line(self, line: bytes) -> None:
        """Hand over a request as `encode` wrote it.

        Args:
            line: UTF-8 JSON that ends in a newline.

        Raises:
            TrainingError: if the process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        # A closed file is a ValueError: another thread stopped the process.
        except (OSError, ValueError):
            raise self._ended() from None

    def receive(self, timeout: float) -> Message | None:
        """The next message; None if there was none in time.

        Args:
            timeout: how long to wait, in seconds.

        Raises:
            TrainingError: if the process ended, or wrote something that is no event.
        """
        if (line := self.receive_line(timeout)) is None:
            return None
        message = decode(line)
        if isinstance(message, Ready):
            self.ready, self.greeting = message, self.greeting or message
        return message

    def receive_line(self, timeout: float) -> bytes | None:
        """The next line, whatever it says; None if there was none in time.

        Args:
            timeout: how long to wait, in seconds.

        Raises:
            TrainingError: if the process ended.
        """
        if not self.is_alive and self._silent_since is None:
            self._silent_since = time.monotonic()
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            if self._silent_since is None or time.monotonic() - self._silent_since < _SILENCE_SECONDS:
                return None
            # Something that it started still holds the pipe open; nothing more will be told.
            raise self._ended() from None
        if line is None:
            # Put back, so that every later call says the same.
            self._lines.put(None)
            raise self._ended()
        self._silent_since = None
        return line

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and everything it started; nothing happens if it is gone."""
        self._stopped_by_us = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL after the grace period. Safe to call twice and from any thread."""
        with self._stop_lock:
            if not self._has_stopped:
                self._stop()
                # Never again: the process id may be somebody else's by then.
                self._has_stopped = True

    def _stop(self) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace)
        # The leader may be gone while something it started lives on.
        self.signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        for thread in self._threads:
            self._join(thread)
        self._folder.cleanup()

    def _join(self, thread: threading.Thread) -> None:
        """Wait for a reader of a dead process; one that waits for room among the lines gets some."""
        deadline = time.monotonic() + 5
        while thread.is_alive() and time.monotonic() < deadline:
            if self._lines.full():
                # No longer than a dead process's pipe has lines.
                with contextlib.suppress(queue.Empty):
                    while True:
                        self._lines.get_nowait()
            thread.join(timeout=0.01)

    def _ended(self) -> TrainingError:
        try:
            status = self._process.wait(timeout=self._grace)
        except subprocess.TimeoutExpired:
            return TrainingError(
                "the training process closed its event pipe but lives on", cause="bad_output"
            )
        # What it said last may still be in its pipe, which something that it started may hold open for ever.
        self._threads[1].join(_SILENCE_SECONDS)
        tail = "\n".join(self._tail.decode(errors="replace").splitlines()[-_TAIL_LINES:])
        if status == -signal.SIGKILL and not self._stopped_by_us:
            return TrainingError(
                "the training process was killed by SIGKILL, which was not ours: most likely the system ran out "
                f"of memory, or its device was taken away\n{tail}",
                cause="device_lost",
            )
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        return TrainingError(f"the training process ended with {how}\n{tail}".rstrip(), cause=self._cause)

    def _read_events(self, pipe: IO[bytes]) -> None:
        with pipe:
            # One byte more than allowed, so that `decode` sees that the line is too long.
            while line := pipe.readline(MAX_LINE_BYTES + 1):
                self._lines.put(line)
        self._lines.put(None)

    def _read_output(self, pipe: IO[bytes]) -> None:
        with pipe:
            # Large pieces: a workload that prints without end must not keep this process busy, nor wait for it.
            while piece := os.read(pipe.fileno(), _OUTPUT_BYTES):
                self._tail = (self._tail + piece)[-_TAIL_BYTES:]
