"""One worker as a child process of `cliptune serve`: started, watched, restarted if it dies, stopped with it."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Sequence

import structlog

from service.jobs.retry import Backoff

log = structlog.get_logger(__name__)

WORKER = (sys.executable, "-m", "service.cli.main", "worker", "--until-stdin-closes")
#: Pauses before a worker that died is started again.
_BACKOFF = Backoff(base_seconds=1.0, max_seconds=60.0)
#: Exit status of a usage or configuration error, which a restart would only repeat.
_MISCONFIGURED = 2
#: How long a stopping worker may take to release its lease, in seconds.
_STOP_SECONDS = 30.0


class WorkerProcess:
    """A context manager: the worker runs inside the block.

    The child's standard input is a pipe that this process holds: if this process is killed the pipe closes
    and the worker stops by itself.

    Args:
        command: the worker's program.
        backoff: pauses between restarts.
    """

    def __init__(self, command: Sequence[str] = WORKER, backoff: Backoff = _BACKOFF) -> None:
        self._command = command
        self._backoff = backoff
        self._stopping = threading.Event()
        # Held while a child is started and while the stop is decided, so that none is started after it.
        self._lock = threading.Lock()
        self._child = self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> WorkerProcess:
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._stopping.set()
            self._child.terminate()
        try:
            self._child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("worker killed", action="worker_killed", pid=self._child.pid)
            self._child.kill()
        self._watcher.join()
        if self._child.stdin is not None:
            self._child.stdin.close()

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the worker in order.
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)

    def _watch(self) -> None:
        failures = 0
        while True:
            status = self._child.wait()
            if self._stopping.is_set():
                return
            if status == _MISCONFIGURED:
                # It said why on standard error.
                log.error("worker can't run", action="worker_misconfigured", status=status)
                return
            failures += 1
            log.warning("worker died", action="worker_died", status=status, failures=failures)
            self._stopping.wait(self._backoff.compute_delay(failures, random.random()))
            with self._lock:
                if self._stopping.is_set():
                    return
                if self._child.stdin is not None:
                    self._child.stdin.close()
                self._child = self._start()
