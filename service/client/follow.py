"""Following a study over whatever lies in between: its stream of events, made again where it is cut, else a look at it.

What is yielded is an event, or the study itself after a stream that ended or stayed silent (a proxy may hold streams
back for good), or None for a sign of life. Nothing blocks for longer than the caller's ``silence``, or `_LOOK_SECONDS`
if that is more, so that a caller can look at its clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx2

from service.client.connection import STREAM_SILENCE_SECONDS
from service.errors import UnavailableError
from service.schemas import EventOut, StudyOut

if TYPE_CHECKING:
    from service.client.connection import Connection

#: Waits before the next try, in seconds, each longer or shorter by up to `_JITTER` of itself; the last one repeats.
#: The first are short: a proxy that cuts a stream is there again at once.
_WAITS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_JITTER = 0.25
#: Tries in a row that found no service, before it is given up: with the waits above after about three minutes.
_MAX_FAILURES = 12
#: Longest wait that a service may ask for, longest sleep without a sign of life, and how long a look at the study may
#: take, in seconds.
_MAX_RETRY_AFTER = 60.0
_SLICE_SECONDS = 10.0
_LOOK_SECONDS = 10.0
#: Statuses of a proxy whose service is away, in the proxy's own words.
_AWAY = (502, 503, 504)


def follow(
    connection: Connection,
    study_id: str,
    after: int | None = None,
    *,
    silence: float = STREAM_SILENCE_SECONDS,
) -> Iterator[EventOut | StudyOut | None]:
    """Follow a study until it has ended.

    Args:
        connection: to the service.
        study_id: the study.
        after: skip events up to this id; None starts at the first.
        silence: how long nothing may come before the connection counts as cut, in seconds, > 0.

    Yields:
        Events in order, each once; the study as it stands after each stream that ended without its last event; None
        for a sign of life.

    Raises:
        ProblemError: what the service answered instead.
        UnavailableError: ``service_unreachable`` if it stays away through all tries.
    """
    path = f"/v1/studies/{quote(study_id, safe='')}"
    # `failures` says when to give up, `cuts` how long to wait: a service that answers is asked on, but slowly.
    last, was_done, failures, cuts = after, False, 0, 0
    while True:
        asked_for = 0.0
        try:
            for event in _listen(connection, f"{path}/events", last, silence):
                failures = 0
                if event is not None:
                    cuts, last = 0, event.id
                yield event
                if event is not None and event.is_terminal:
                    return
            if was_done:
                return
            # The server is going down, everything was read before, or no stream comes through: the study tells.
            study = connection._call(StudyOut, "GET", path, repeatable=False, timeout=_LOOK_SECONDS)
            was_done, failures = study.done, 0
            yield study
        except UnavailableError as error:
            if _is_somebody_else(error) or failures >= _MAX_FAILURES:
                raise
            failures, asked_for = failures + 1, _retry_after(error)
        except httpx2.TransportError as error:
            if failures >= _MAX_FAILURES:
                raise connection._unreachable(error) from error
            failures += 1
        if failures or not was_done:
            yield from _pause(max(asked_for, _WAITS[min(cuts, len(_WAITS) - 1)]))
        cuts += 1


def _listen(connection: Connection, path: str, last: int | None, silence: float) -> Iterator[EventOut | None]:
    """One stream; silence ends it like the server does, since it tells nothing about the service."""
    try:
        yield from connection._stream(path, last, silence)
    except httpx2.ReadTimeout:
        return


def _pause(seconds: float) -> Iterator[None]:
    """Sleep, with signs of life: callers that were cut off together do not come back together."""
    left = seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
    while left > 0:
        yield None
        time.sleep(min(left, _SLICE_SECONDS))
        left -= _SLICE_SECONDS


def _is_somebody_else(error: UnavailableError) -> bool:
    """Whether the address is another program's; a proxy in front of a service that restarts is none."""
    return error.code == "unexpected_response" and error.status not in _AWAY


def _retry_after(error: UnavailableError) -> float:
    """How long the service asks to be left alone, in seconds; 0 if it does not say, or gives a date."""
    wanted = error.headers.get("retry-after", "")
    return min(float(wanted), _MAX_RETRY_AFTER) if wanted.isdecimal() else 0.0
