"""Carries what a training tells to the service: in order, through outages, with a lease kept alive meanwhile.

A training is worth more than the connection: while the service is away reports are kept, and they are sent again until
the service takes them or says that the lease is lost. Every call may be repeated without harm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from service.errors import ProblemError, UnavailableError
from service.schemas import CompletedOut, DirectiveOut, LeaseOut

#: Between two tries while the service is away, in seconds.
_AWAY_SECONDS = 2.0
LOST = "the lease is lost: another process may train this lane"

log = logging.getLogger(__name__)


class Delivery:
    """One lease's line to the service; `start` begins the heartbeats, `close` ends them.

    Args:
        call: `service.client.connection.Connection._call` of a connection.
        lease: the lane.
    """

    def __init__(self, call: Callable[..., Any], lease: LeaseOut) -> None:
        self._call = call
        self._token = lease.lease_token
        self._path = f"/v1/trials/{quote(lease.trial_id, safe='')}/"
        self._lease_seconds = lease.lease_seconds
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._kept: deque[Mapping[str, Any]] = deque()
        self._stop_reason: str | None = None
        self._problem: ProblemError | None = None
        self._away_until = 0.0
        self._has_warned = False

    @property
    def stop_reason(self) -> str | None:
        """Why the training is to end; None to go on."""
        return self._stop_reason

    def start(self) -> None:
        """Send a sign of life every quarter of the lease from now on, from a thread that does not keep the process."""
        threading.Thread(target=self._beat, name="cliptune-heartbeat", daemon=True).start()

    def close(self) -> None:
        """End the heartbeats: the lease runs out unless it was completed."""
        self._closed.set()

    def stop(self, reason: str) -> None:
        """Decide here that the training is to end; what is kept is sent all the same."""
        self._stop_reason = self._stop_reason or reason

    def report(self, body: Mapping[str, Any]) -> None:
        """Send a report, or keep it while the service is away.

        Args:
            body: of the request, without the token.

        Raises:
            ProblemError: what the service answered, to this report or to one that it got meanwhile.
        """
        with self._lock:
            self._kept.append(body)
            if time.monotonic() >= self._away_until:
                self._try(self._send_kept)
            if self._problem is not None:
                problem, self._problem = self._problem, None
                raise problem

    def complete(self, body: Mapping[str, Any]) -> str | None:
        """End the lease, after everything that is kept; waits for a service that is away, for the time of a lease.

        Args:
            body: of the request, without the token.

        Returns:
            Where the lane went; None if the lease is lost.

        Raises:
            UnavailableError: if the service stays away.
            ProblemError: what the service answered.
        """
        deadline = time.monotonic() + self._lease_seconds
        while True:
            try:
                with self._lock:
                    if self._problem is not None:
                        log.warning("a report was refused: %s", self._problem)
                        self._problem = None
                    self._send_kept()
                    done: CompletedOut = self._post(CompletedOut, "complete", body)
                self.close()
                return done.state
            except UnavailableError:
                if time.monotonic() + _AWAY_SECONDS > deadline:
                    self.close()
                    raise
                time.sleep(min(_AWAY_SECONDS, self._lease_seconds / 4))
            except ProblemError as error:
                if not _is_lost(error):
                    raise
                self._lose()
                return None

    def _beat(self) -> None:
        while not self._closed.wait(self._pause()):
            with self._lock:
                if self._closed.is_set():
                    return
                try:
                    self._try(self._send_kept if self._kept else self._send_heartbeat)
                except RuntimeError as error:
                    # The connection was closed under the training: the lease will run out.
                    log.warning("no more signs of life are sent: %s", error)
                    return
            if self._stop_reason is not None and not self._kept:
                return

    def _pause(self) -> float:
        regular = self._lease_seconds / 4
        return min(regular, _AWAY_SECONDS) if self._away_until > 0 else regular

    def _try(self, send: Callable[[], None]) -> None:
        """Send something; an outage is noted, a refusal is kept for the training's next call."""
        try:
            send()
        except UnavailableError as error:
            self._away_until = time.monotonic() + _AWAY_SECONDS
            if not self._has_warned:
                self._has_warned = True
                log.warning("the training goes on, its reports are kept: %s", error)
        except ProblemError as error:
            if _is_lost(error):
                self._lose()
            else:
                self._problem = error
        else:
            self._away_until, self._has_warned = 0.0, False

    def _send_kept(self) -> None:
        while self._kept:
            try:
                self._obey(self._post(DirectiveOut, "report", self._kept[0]))
            except UnavailableError:
                raise
            except ProblemError:
                # Refused: the same report would be refused again.
                self._kept.popleft()
                raise
            if self._kept:
                self._kept.popleft()

    def _send_heartbeat(self) -> None:
        self._obey(self._post(DirectiveOut, "heartbeat", {}))

    def _obey(self, directive: DirectiveOut) -> None:
        if not directive.go_on:
            self.stop(directive.reason)
            self._kept.clear()

    def _lose(self) -> None:
        self.stop(LOST)
        self._kept.clear()
        self.close()

    def _post(self, kind: type[Any], verb: str, body: Mapping[str, Any]) -> Any:
        return self._call(kind, "POST", self._path + verb, json={"lease_token": self._token, **body})


def _is_lost(error: ProblemError) -> bool:
    """Whether the lane is not this process's any more; a study that was deleted has no lanes."""
    return error.code in ("lease_lost", "trial_not_found")
