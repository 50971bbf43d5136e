"""Page cursors: opaque, and signed with the caller's own key, so that none is made up or moved to another list."""

from __future__ import annotations

import base64
import hashlib
import hmac

from service.errors import InvalidRequestError


class InvalidCursorError(InvalidRequestError):
    """The cursor was not given by this list to this key."""

    code = "invalid_cursor"

    def __init__(self) -> None:
        super().__init__(
            "the cursor is not one that this list gave to this key: start again without a cursor",
            errors=[{"detail": "is not a cursor of this list", "pointer": "query/cursor"}],
        )


def write_cursor(signing_key: bytes, purpose: str, position: int, tail: str) -> str:
    """An opaque place in a list.

    Args:
        signing_key: the caller's own.
        purpose: which list.
        position: the sorted number of the last item shown.
        tail: its id, which breaks ties.

    Returns:
        URL-safe text.
    """
    body = f"{purpose}:{position}:{tail}".encode()
    return base64.urlsafe_b64encode(_sign(signing_key, body) + body).decode().rstrip("=")


def read_cursor(signing_key: bytes, purpose: str, text: str) -> tuple[int, str]:
    """The place that `write_cursor` wrote.

    Args:
        signing_key: the caller's own.
        purpose: which list.
        text: the cursor.

    Returns:
        Position and tail.

    Raises:
        InvalidCursorError: if the cursor is none of this list's.
    """
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        body = raw[16:]
        if not hmac.compare_digest(_sign(signing_key, body), raw[:16]):
            raise InvalidCursorError()
        found, position, tail = body.decode().split(":", 2)
        if found != purpose:
            raise InvalidCursorError()
        return int(position), tail
    except ValueError:
        raise InvalidCursorError() from None


def _sign(signing_key: bytes, body: bytes) -> bytes:
    return hmac.new(signing_key, body, hashlib.sha256).digest()[:16]
