"""Structured logs on standard error: constant messages, ids bound, a stable ``action``.

Lines that could carry an access key are redacted by pattern, whatever field it is in.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from service.settings import Settings

_SECRETS = re.compile(
    r"cliptune_[a-z]+_[0-9A-Za-z]{8}_[0-9A-Za-z]+(_[0-9A-Za-z]+)?"
    r"|whsec_[0-9A-Za-z+/]+=*"
    # An identity token: both its JSON parts begin with a brace.
    r"|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]*"
    # A password may hold a bare "/" or "@", which SQLAlchemy accepts: everything up to the last "@" of the word.
    # The second form takes a password with a quote in it, at which the first one stops.
    r"|(?<=://)[^\s\"'/:]*:[^\s\"']+(?=@)|(?<=://)[^/@\s]+:[^/@\s]+(?=@)"
    r"|(?P<name>password=)('[^']*'|[^&\s\"']+)",
    re.IGNORECASE,
)


def configure_logs(settings: Settings) -> None:
    """Send every log line of this process to standard error, in the settings' format and from their level on."""
    as_console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if as_console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def redact(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace access keys, identity tokens and the passwords of URLs in every text of a log line.

    Example:
        >>> redact(None, "info", {"event": "at postgresql://me:secret@host/db"})["event"]
        'at postgresql://[redacted]@host/db'
    """
    del logger, method
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = without_secrets(value)
    return event


def without_secrets(text: str) -> str:
    """A text with every access key, identity token, URL's user and password, and ``password=`` in it replaced.

    Args:
        text: any text; a URL in it ends at white space or a quote.

    Returns:
        The text. Where it is not clear what is a password, too much is replaced and not too little.

    Example:
        >>> without_secrets("postgresql://me:p@ss/w@host/db and postgresql://host/db?user=me&password=secret")
        'postgresql://[redacted]@host/db and postgresql://host/db?user=me&password=[redacted]'
    """
    return _SECRETS.sub(lambda found: f"{found['name'] or ''}[redacted]", text)
