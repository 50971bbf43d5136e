"""One POST to one address: looked up once, connected to as found, over in a few seconds whatever the other side does.

No proxy, no redirect, no cookie, no second connection. Of the answer only the status and Retry-After are kept; the
time is one for everything, so that a receiver that drips byte after byte ends with it.
"""

from __future__ import annotations

import http.client
import io
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ServiceError, SettingsError
from service.webhooks.target import Allowance, Target, choose_address

#: Time for name, connection, TLS, request and answer together, in seconds.
TOTAL_SECONDS = 5.0
#: Most bytes read of an answer, its head included.
MAX_ANSWER_BYTES = 65_536

#: Gives the addresses of a host and port.
Resolver = Callable[[str, int], Sequence[str]]


class PostError(ServiceError):
    """No answer came; the sentence says why, without what the other side sent."""

    code = "webhook_not_answered"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said.

    Attributes:
        status: of the answer.
        retry_after: the header as it came; empty without one.
    """

    status: int
    retry_after: str = ""


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's resolver.

    Args:
        host: a name or an address.
        port: where it will be connected to.

    Returns:
        The addresses, each once.

    Raises:
        OSError: if there is no such name, or nobody answers for it.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def trusting(ca_file: str = "") -> ssl.SSLContext:
    """TLS that checks certificate and name.

    Args:
        ca_file: PEM file of authorities to trust besides the system's; empty for none.

    Returns:
        The context.

    Raises:
        SettingsError: if the file can't be read.
    """
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(Path(ca_file).expanduser())
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"CLIPTUNE_WEBHOOK_CA_FILE={ca_file!r} can't be read ({error}): give a PEM file with certificates"
            ) from None
    return context


class Poster:
    """Sends to targets that an operator allows.

    Args:
        allowance: the operator's.
        context: of TLS.
        resolve: looks a host up; called once per post.
        total_seconds: time for everything, in seconds, > 0.
    """

    def __init__(
        self,
        allowance: Allowance,
        context: ssl.SSLContext,
        *,
        resolve: Resolver = resolve_host,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self._allowance = allowance
        self._context = context
        self._resolve = resolve
        self._total_seconds = total_seconds

    def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send once.

        Args:
            target: checked by `parse_target`.
            headers: printable ASCII, besides those of HTTP itself.
            body: JSON.

        Returns:
            The answer's status.

        Raises:
            WebhookRefusedError: if the host has an address that may not be used; nothing was connected to.
            PostError: if no answer came in time.
        """
        deadline = _Deadline(self._total_seconds)
        try:
            found = _within(deadline, lambda: self._resolve(target.host, target.port))
            address = choose_address(target, found, self._allowance)
            with socket.create_connection((address, target.port), timeout=deadline.left()) as plain:
                connected = self._encrypted(plain, target, deadline)
                with connected:
                    return _exchange(connected, _request(target, headers, body), deadline)
        except TimeoutError:
            raise PostError(f"no answer within {self._total_seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise PostError(f"the certificate does not verify: {error.verify_message}") from None
        except ssl.SSLError:
            raise PostError("TLS failed: the receiver must speak TLS 1.2 or later") from None
        except socket.gaierror:
            raise PostError("the host's name can't be looked up") from None
        except OSError as error:
            raise PostError(f"the connection failed: {error.strerror or 'closed'}") from None
        except http.client.HTTPException:
            raise PostError("the answer is not HTTP, or its head was cut off") from None

    def _encrypted(self, plain: socket.socket, target: Target, deadline: _Deadline) -> socket.socket:
        plain.settimeout(deadline.left())
        if target.scheme == "http":
            return plain
        return self._context.wrap_socket(plain, server_hostname=target.host)


class _Deadline:
    """A moment on the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then.

        Returns:
            More than 0.

        Raises:
            TimeoutError: if it has passed.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _within(deadline: _Deadline, look_up: Callable[[], Sequence[str]]) -> Sequence[str]:
    """A lookup, which the system gives no time limit, in a thread that is left alone when the time is over.

    Raises:
        TimeoutError: at the deadline.
        gaierror: if the host can't be a name.
        OSError: what the lookup raised.
    """
    results: queue.SimpleQueue[Sequence[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def answer() -> None:
        try:
            results.put(look_up())
        except (OSError, UnicodeError) as error:
            results.put(error)

    threading.Thread(target=answer, daemon=True).start()
    try:
        found = results.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, UnicodeError):
        raise socket.gaierror(socket.EAI_NONAME, "not a name")
    if isinstance(found, OSError):
        raise found
    return found


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    fields = {
        "Host": target.authority,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "User-Agent": "cliptune",
        "Connection": "close",
        **headers,
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _exchange(connected: socket.socket, request: bytes, deadline: _Deadline) -> Answer:
    connected.settimeout(deadline.left())
    connected.sendall(request)
    response = http.client.HTTPResponse(_Readable(connected, deadline), method="POST")  # type: ignore[arg-type]
    try:
        response.begin()
    except ValueError:
        raise http.client.HTTPException from None
    answer = Answer(response.status, response.headers.get("retry-after", ""))
    try:
        # So that a receiver that is still writing is not reset; what it writes does not matter.
        while response.read(8192):
            pass
    except (OSError, ValueError, http.client.HTTPException):
        # Such as a chunk of negative length: it was not read, and that is all.
        pass
    return answer


class _Readable:
    """As much of a socket as `http.client.HTTPResponse` asks for."""

    def __init__(self, connected: socket.socket, deadline: _Deadline) -> None:
        self._reader = _BoundedReader(connected, deadline)

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode
        return _WholeLines(self._reader)


class _WholeLines(io.BufferedReader):
    """Lines with their end: to `http.client` the end of the connection is the end of the head too."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n") and len(line) != size:
            raise http.client.IncompleteRead(line)
        return line


class _BoundedReader(io.RawIOBase):
    """The bytes of a socket, until the deadline or the limit, which looks like the connection's end."""

    def __init__(self, connected: socket.socket, deadline: _Deadline) -> None:
        self._socket = connected
        self._deadline = deadline
        self._left = MAX_ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            return 0
        self._socket.settimeout(self._deadline.left())
        count = self._socket.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count
