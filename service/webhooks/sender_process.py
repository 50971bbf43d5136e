"""The sender of webhooks as a process of its own, or as a thread beside `cliptune serve`."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import structlog

from service.db.migrate import wait_for_schema
from service.db.session import Database
from service.settings import Settings
from service.webhooks.sender import Sender, sender_of

log = structlog.get_logger(__name__)


def run_sender(settings: Settings) -> None:
    """Deliver until SIGTERM or SIGINT; what is under way is finished first, which takes a few seconds.

    Args:
        settings: of this process.

    Raises:
        DatabaseError: if the database can't be reached or its schema is another version's.
        SettingsError: if a CLIPTUNE_WEBHOOK_ setting can't be used.
    """
    database = _open(settings)
    try:
        sender = sender_of(settings, database)
        database.wait_until_reachable(settings.database_wait_seconds)
        wait_for_schema(database, settings.database_wait_seconds)

        def on_signal(number: int, frame: FrameType | None) -> None:
            del number, frame
            sender.stop()

        # Not before: while the database is waited for nothing is under way, and a signal ends the process.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, on_signal)
        log.info("sender ready", action="sender_ready", database=database.dialect)
        sender.deliver()
        log.info("sender stopped", action="sender_stopped")
    finally:
        database.close()


class SenderThread:
    """A context manager: events are delivered inside the block.

    Args:
        settings: of this process; its database is reachable and migrated.

    Raises:
        SettingsError: if a CLIPTUNE_WEBHOOK_ setting can't be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._database = _open(settings)
        self._sender: Sender = sender_of(settings, self._database)
        self._thread = threading.Thread(target=self._sender.deliver, name="sender", daemon=True)

    def __enter__(self) -> SenderThread:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._sender.stop()
        self._thread.join()
        self._database.close()


def _open(settings: Settings) -> Database:
    return Database(settings.resolved_database_url, journal_mode=settings.sqlite_journal_mode)
