"""What can be wrong with a command before anything is leased."""

from __future__ import annotations

from service.errors import ServiceError


class CommandError(ServiceError):
    """The command, or where its metrics are read from, can't be used for this study."""

    code = "invalid_command"
