"""The typed client of the HTTP interface, on the server's own types; a light install (no database, no torch)."""

from __future__ import annotations

from service.client.client import Client as Client
from service.client.connection import ERRORS as _ERRORS
from service.client.trial import LeasedTrial as LeasedTrial

__all__ = ["_ERRORS", "Client", "LeasedTrial"]
