"""The process of one lane: started on a leash, listened to, and ended with everything that it started."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO

from service.agent import leash
from service.agent.lines import LineSplitter

#: How much of the output is kept for an error report: lines, and characters of each.
TAIL_LINES, _TAIL_CHARACTERS = 40, 1000
#: How long the pipes are listened to once the command has ended and something it started holds them, in seconds.
_DRAIN_SECONDS = 1.0
_CHUNK_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a command ended.

    Attributes:
        status: exit status, or the negative number of a signal; None if the command could not be started.
        error: why it could not be started, for people; empty otherwise.
    """

    status: int | None
    error: str = ""


class Child:
    """One running command; leave the block and nothing of it is left.

    Args:
        command: its arguments, as they are.
        environment: all of it.
        grace_seconds: time between SIGTERM and SIGKILL.
        on_line: called with each line of standard output, from another thread.
        outlets: where standard output and standard error are passed on to; None passes nothing on.

    Raises:
        OSError: if not even the leash can be started.
        ValueError: if an argument can't be handed to a program, for example because of a NUL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        grace_seconds: float,
        on_line: Callable[[bytes], None],
        outlets: tuple[BinaryIO | None, BinaryIO | None],
    ) -> None:
        self._grace = grace_seconds
        self._ending: Ending | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        hold, self._hold = os.pipe()
        self._told, tell = os.pipe()
        arguments = [sys.executable, "-I", leash.__file__, str(hold), str(tell), str(grace_seconds), *command]
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(hold, tell),
                start_new_session=True,
                env=dict(environment),
            )
        except (OSError, ValueError):
            os.close(self._hold)
            os.close(self._told)
            raise
        finally:
            os.close(hold)
            os.close(tell)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._pump = _Pump(
            [
                _Stream(self._process.stdout, outlets[0], self._keep, on_line),
                _Stream(self._process.stderr, outlets[1], self._keep, None),
            ]
        )
        self._pump.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def tail(self) -> str:
        """The last 40 lines of output, standard error included."""
        return "\n".join(self._tail)

    def wait(self, timeout: float) -> Ending | None:
        """How the command ended; None if it runs on.

        Args:
            timeout: how long to wait for that, in seconds.
        """
        if self._ending is None and select.select([self._told], [], [], timeout)[0]:
            self._ending = _ending(os.read(self._told, 100))
        return self._ending

    def stop(self) -> None:
        """End it and everything in its group: SIGTERM, and SIGKILL after the grace period."""
        self._signal(signal.SIGTERM)
        self.wait(self._grace)
        self.close()

    def close(self) -> None:
        """Read what is left of the output, then kill what is left of the group; safe to call twice."""
        if self._hold < 0:
            return
        try:
            if self._ending is not None:
                self._pump.join(_DRAIN_SECONDS)
        finally:
            # The leash is in the group and not waited for yet, so that the number can't be anybody else's.
            self._signal(signal.SIGKILL)
            self._process.wait()
            os.close(self._hold)
            os.close(self._told)
            self._hold = -1
            self._pump.finish()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _keep(self, line: bytes) -> None:
        # Progress bars write over their own line; the last state is what was seen.
        text = line.decode(errors="replace").rstrip().rpartition("\r")[2]
        if text:
            self._tail.append(text[:_TAIL_CHARACTERS])


class _Stream:
    """One of the two outputs: passed on as it comes, cut into lines beside."""

    def __init__(
        self,
        pipe: IO[bytes],
        outlet: BinaryIO | None,
        keep: Callable[[bytes], None],
        on_line: Callable[[bytes], None] | None,
    ) -> None:
        self.pipe = pipe
        self._outlet = outlet
        self._keep = keep
        self._on_line = on_line
        self._splitter = LineSplitter()

    def take(self) -> bool:
        """Take what can be read now; False at the end."""
        chunk = os.read(self.pipe.fileno(), _CHUNK_BYTES)
        self._pass_on(chunk)
        lines = self._splitter.feed(chunk) if chunk else [self._splitter.rest()]
        if self._on_line is not None:
            for line in lines:
                self._on_line(line)
        for line in lines[-TAIL_LINES:]:
            self._keep(line)
        return bool(chunk)

    def _pass_on(self, chunk: bytes) -> None:
        if self._outlet is None:
            return
        try:
            self._outlet.write(chunk)
            self._outlet.flush()
        except (OSError, ValueError):
            # Nobody reads it any more; the training goes on.
            self._outlet = None


class _Pump(threading.Thread):
    """Reads both outputs until they end, or until it is told to finish because something else holds them open."""

    def __init__(self, streams: Sequence[_Stream]) -> None:
        super().__init__(daemon=True)
        self._streams = streams
        self._wake_read, self._wake = os.pipe()

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                selector.register(stream.pipe, selectors.EVENT_READ, stream)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while len(selector.get_map()) > 1:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    if not key.data.take():
                        selector.unregister(key.fileobj)

    def finish(self) -> None:
        """End the thread and close its pipes."""
        os.close(self._wake)
        # It may be writing to a terminal that stands still; then it is left behind with its pipes.
        self.join(_DRAIN_SECONDS)
        if self.is_alive():
            return
        os.close(self._wake_read)
        for stream in self._streams:
            stream.pipe.close()


def _ending(told: bytes) -> Ending:
    kind, _, number = told.decode().strip().partition(" ")
    if kind == "error":
        return Ending(status=None, error=os.strerror(int(number)))
    # A leash that says nothing was killed, and what it held will be.
    return Ending(status=int(number) if kind == "exit" else -signal.SIGKILL)
