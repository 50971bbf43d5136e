"""One worker as a child process of `cliptune serve`: started, watched, restarted if it dies, stopped with it."""

from __future__ import annotations

import subprocess
import sys
import threading

import structlog

from service.settings import Settings

log = structlog.get_logger(__name__)

#: Pause before a worker that died is started again, in seconds.
_RESTART_SECONDS = 1.0
#: How long a stopping worker may take to release its lease, in seconds.
_STOP_SECONDS = 30.0


class WorkerProcess:
    """A context manager: the worker runs inside the block.

    The child's standard input is a pipe that this process holds: if this process is killed the pipe closes
    and the worker stops by itself.

    Args:
        settings: only to satisfy `serve_api`; the child reads its own environment.
    """

    def __init__(self, settings: Settings) -> None:
        del settings
        self._stopping = threading.Event()
        self._child = self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> WorkerProcess:
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._child.terminate()
        try:
            self._child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("worker killed", action="worker_killed", pid=self._child.pid)
            self._child.kill()
        self._watcher.join()

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the worker in order.
        return subprocess.Popen(
            [sys.executable, "-m", "service.cli.main", "worker", "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _watch(self) -> None:
        while True:
            status = self._child.wait()
            if self._stopping.wait(_RESTART_SECONDS if status else 0):
                return
            log.warning("worker died", action="worker_restarted", status=status)
            self._child = self._start()
