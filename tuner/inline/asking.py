"""One question to the service, with the standard library, that ends in time whatever the other side does."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from ipaddress import ip_address
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any
from urllib.parse import urlsplit

#: Largest answer that is read, in bytes; a recommendation has about 5000.
MAX_BYTES = 1_000_000
#: Longest explanation of a refusal that is passed on, in characters.
_MAX_DETAIL = 300
_DEFAULT_PORT = "8765"


class NoAnswerError(Exception):
    """There is no usable answer; the message says why, as a clause."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the service said.

    Attributes:
        body: the answer's bytes; None if it is what the caller knows already.
        etag: the answer's version, empty if it has none.
    """

    body: bytes | None
    etag: str


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the service is and how to be let in.

    Attributes:
        url: without a slash at the end.
        api_key: empty if none is known.
    """

    url: str
    api_key: str

    @classmethod
    def resolve(cls, url: str | None, api_key: str | None) -> Address:
        """The arguments, else the environment, else what ``cliptune serve`` leaves in its home folder.

        Args:
            url: wins over CLIPTUNE_URL, which wins over the service that runs from CLIPTUNE_HOME.
            api_key: wins over CLIPTUNE_API_KEY, which wins over the key in CLIPTUNE_HOME.

        Returns:
            An address; nothing was asked yet.
        """
        port = os.environ.get("CLIPTUNE_PORT") or _DEFAULT_PORT
        found = url or os.environ.get("CLIPTUNE_URL") or _served_url() or f"http://127.0.0.1:{port}"
        key = api_key or os.environ.get("CLIPTUNE_API_KEY") or _kept("key")
        # A secret that was mounted or read from a file often ends with its line.
        return cls(url=found.strip().rstrip("/"), api_key=key.strip())


def ask(url: str, *, api_key: str, etag: str, timeout: float) -> Answer:
    """GET an address.

    Redirects are not followed: they would take the access key along. At most `MAX_BYTES` are read.

    Args:
        url: of HTTP or HTTPS.
        api_key: sent if not empty.
        etag: of the answer that is known already; empty asks for it in any case.
        timeout: longest wait, in seconds, for everything together: name, connection, headers and body; > 0.

    Returns:
        The answer.

    Raises:
        NoAnswerError: for whatever goes wrong.
    """
    if not timeout > 0:
        raise NoAnswerError(f"{_without_query(url)} was not asked, because the timeout is {timeout:g} s")
    answers: SimpleQueue[Answer | NoAnswerError] = SimpleQueue()

    def deliver() -> None:
        try:
            answers.put(_get(url, api_key, etag, timeout))
        except NoAnswerError as error:
            answers.put(error)
        except Exception as error:
            # The socket's timeout may pass a moment before the one below.
            late = isinstance(getattr(error, "reason", error), TimeoutError)
            words = _late(timeout) if late else f"could not be asked ({_cause(error)})"
            answers.put(NoAnswerError(f"{_without_query(url)} {words}"))

    # A socket's own timeout begins anew with each byte, and looking up a name has none.
    thread = threading.Thread(target=deliver, name="cliptune-ask", daemon=True)
    try:
        thread.start()
        answer = answers.get(timeout=timeout)
    except Empty:
        raise NoAnswerError(f"{_without_query(url)} {_late(timeout)}") from None
    except RuntimeError as error:
        raise NoAnswerError(f"no thread could be started to ask ({error})") from error
    if isinstance(answer, NoAnswerError):
        raise answer
    return answer


def _late(timeout: float) -> str:
    return f"gave no answer within {timeout:g} s"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        del req, fp, code, msg, headers, newurl


def _get(url: str, api_key: str, etag: str, timeout: float) -> Answer:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NoAnswerError(
            f"{_without_query(url)!r} is no address of a service: it begins with http:// or https://"
        )
    headers = {"Accept": "application/json"}
    if not (api_key.isascii() and api_key.isprintable()):
        # The library's own error would show the key.
        raise NoAnswerError(
            f"{_without_query(url)} could not be asked (the access key has characters that no header may have)"
        )
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    if etag:
        headers["If-None-Match"] = etag
    handlers: list[urllib.request.BaseHandler | Callable[[], urllib.request.BaseHandler]] = [_NoRedirects]
    if _is_loopback(parts.hostname):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            body: bytes = response.read(MAX_BYTES + 1)
            if len(body) > MAX_BYTES:
                raise NoAnswerError(f"the answer of {_without_query(url)} has more than {MAX_BYTES} bytes")
            return Answer(body=body, etag=str(response.headers.get("ETag") or ""))
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 304 and etag:
                return Answer(body=None, etag=etag)
            raise NoAnswerError(_refusal(url, error)) from None


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    """What an answer other than 200 means; a problem of the service says so itself."""
    if 300 <= error.code < 400:
        return (
            f"{_without_query(url)} answered {error.code}, elsewhere: give the address of the service itself"
        )
    try:
        problem = json.loads(error.read(MAX_BYTES))
        detail = str(problem["detail"])[:_MAX_DETAIL]
    except Exception:
        detail = error.reason or "without a reason"
    return f"{_without_query(url)} answered {error.code}: {detail}"


def _cause(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)


def _without_query(url: str) -> str:
    """The address as a person may see it: no query, no password."""
    shown = url.partition("?")[0]
    scheme, slashes, rest = shown.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _served_url() -> str:
    """Address of the service that runs from CLIPTUNE_HOME, as it left it there; empty without one."""
    try:
        document: Any = json.loads(_kept("service.json"))
        return str(document["url"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _kept(name: str) -> str:
    """A file in CLIPTUNE_HOME; empty if it can't be read."""
    try:
        home = Path(os.environ.get("CLIPTUNE_HOME") or "~/.cliptune").expanduser()
        with (home / name).open(encoding="utf-8") as file:
            return file.read(MAX_BYTES)
    except (OSError, ValueError, RuntimeError):
        return ""
