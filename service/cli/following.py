"""Waiting for a study: a live block on a terminal; elsewhere plain, complete lines that survive a log viewer.

A line for each thing that happens, and one at least every `QUIET_SECONDS`: platforms kill steps that say nothing. No
control characters (only GitLab's own markers of a section have some), and nothing that a runner takes for a command.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from service.cli.progress import StudyView, news
from service.cli.texts import harmless
from service.errors import ServiceError, UnavailableError

if TYPE_CHECKING:
    from service.client import Client
    from service.schemas import EventOut, StudyOut

#: Longest time without a line, in seconds, with room for a slow machine below the contract's 30.
QUIET_SECONDS = 25.0
#: Silence after which a connection counts as cut, in seconds; the service pings every 15.
_SILENCE_SECONDS = 20.0
#: Wait between two looks at a study whose service is away.
_RETRY_SECONDS = 1.0
_MINUTE = 60.0


class StillRunningError(ServiceError):
    """The time to wait is over; the study goes on."""

    code = "wait_timed_out"
    exit_code = 4

    def __init__(self, study_id: str, minutes: float) -> None:
        super().__init__(
            f"study {study_id[:8]} is not done after {minutes:g} minutes and goes on; resume with: {resume(study_id)}"
        )


def resume(study_id: str) -> str:
    """The command that goes on waiting."""
    return f"cliptune watch {study_id[:8]}"


def wait_for_study(
    client: Client, study: StudyOut, *, quiet: bool = False, limit_minutes: float | None = None
) -> None:
    """Show a study until it has ended, or the time is over; where the waiting fails before, say how to resume.

    Args:
        client: of the service.
        study: the study.
        quiet: show nothing, only wait.
        limit_minutes: how long to wait, > 0; None for as long as it takes.

    Raises:
        KeyboardInterrupt: passed on, and after SIGTERM.
        ServiceError: passed on, if the service stays away or refuses.
    """
    limit = None if limit_minutes is None else limit_minutes * _MINUTE
    try:
        with terminable(), log_section(os.environ, f"study {study.id[:8]}", is_shown=not quiet):
            follow(study, _seen(client, study.id, limit), quiet=quiet)
    except (KeyboardInterrupt, ServiceError):
        say(f"the study goes on; resume with: {resume(study.id)}")
        raise


def follow(
    study: StudyOut,
    seen: Iterable[EventOut | StudyOut | None],
    *,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Show a study until what is seen of it ends.

    Args:
        study: the study.
        seen: its events from the beginning, looks at it, and signs of life.
        quiet: show nothing, only wait.
        clock: seconds from any beginning.
    """
    view = StudyView(study)
    with _display(view, clock, quiet=quiet) as show:
        for each in seen:
            view = view.fold(each)
            show(view)


def _seen(client: Client, study_id: str, limit: float | None) -> Iterator[EventOut | StudyOut | None]:
    """What is seen of a study until it has ended, or for a number of seconds.

    A stream may stay silent for longer than the time that is left; then the service is asked to answer in that time.
    """
    from service.client.follow import follow as follow_over

    if limit is None:
        yield from follow_over(client, study_id, silence=_SILENCE_SECONDS)
        return
    over = time.monotonic() + limit
    for each in follow_over(client, study_id, silence=_SILENCE_SECONDS):
        yield each
        if over - time.monotonic() <= _SILENCE_SECONDS:
            yield from _looks(client, study_id, over)
            return


def _looks(client: Client, study_id: str, over: float) -> Iterator[StudyOut]:
    """Looks at a study until it has ended, or for the rest of the time, through a service that restarts."""
    while (left := over - time.monotonic()) > 0:
        try:
            study = client.get_study(study_id, wait=left)
        except UnavailableError:
            study = None
        if study is not None:
            yield study
            if study.done:
                return
        time.sleep(max(0.0, min(_RETRY_SECONDS, over - time.monotonic())))


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM becomes `KeyboardInterrupt`: a container's end, too, leaves time to say how it stands.

    Yields:
        While that holds; outside of the main thread, which alone has signals, it does not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as if by Ctrl-C.

    Raises:
        KeyboardInterrupt: always.
    """
    del number, frame
    raise KeyboardInterrupt


def say(line: str) -> None:
    """Print a line on standard error, whatever it is made of: see `harmless`."""
    print(harmless(line), file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def log_section(environment: Mapping[str, str], title: str, *, is_shown: bool = True) -> Iterator[None]:
    """Lines on standard error that a platform's log viewer folds away.

    Args:
        environment: tells the platform.
        title: of the lines.
        is_shown: whether there are lines.

    Yields:
        While they are printed.
    """
    begin, end = _markers(environment, title) if is_shown else ("", "")
    if begin:
        print(begin, file=sys.stderr, flush=True)  # noqa: T201
    try:
        yield
    finally:
        if end:
            print(end, file=sys.stderr, flush=True)  # noqa: T201


def _markers(environment: Mapping[str, str], title: str) -> tuple[str, str]:
    """What begins and ends a section; nothing on an unknown platform.

    Source:
        https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions and
        https://docs.gitlab.com/ci/jobs/job_logs/#custom-collapsible-sections.
    """
    if environment.get("GITHUB_ACTIONS") == "true":
        return f"::group::cliptune: {harmless(title)}", "::endgroup::"
    if environment.get("GITLAB_CI") == "true":
        name = "cliptune_" + re.sub(r"[^a-z0-9_]", "_", title.lower())
        start = f"\x1b[0Ksection_start:{int(time.time())}:{name}\r\x1b[0Kcliptune: {harmless(title)}"
        return start, f"\x1b[0Ksection_end:{int(time.time())}:{name}\r\x1b[0K"
    return "", ""


@contextmanager
def _display(
    view: StudyView, clock: Callable[[], float], *, quiet: bool
) -> Iterator[Callable[[StudyView], None]]:
    """What shows a view, in the way that suits who reads."""
    if quiet:
        yield lambda after: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(Text("\n".join(view.lines())), console=Console(stderr=True), refresh_per_second=8) as live:
            yield lambda after: live.update(Text("\n".join(after.lines())))
    else:
        with _Log(view, clock) as log:
            yield log.show


class _Log:
    """The lines of a log; a thread adds one where nothing has happened for a while, whatever the wire waits for."""

    def __init__(self, view: StudyView, clock: Callable[[], float]) -> None:
        self._view, self._clock = view, clock
        self._began = self._last = clock()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def __enter__(self) -> Self:
        say(self._view.header())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def show(self, after: StudyView) -> None:
        """Print what is new."""
        with self._lock:
            self._print(news(self._view, after))
            self._view = after

    def _fill(self) -> None:
        while not self._closed.wait(max(0.01, self._last + QUIET_SECONDS - self._clock())):
            with self._lock:
                now = self._clock()
                if now - self._last >= QUIET_SECONDS:
                    self._print([self._view.still(now - self._began)])

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            say(line)
            self._last = self._clock()
