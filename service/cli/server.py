"""Run the API in this process: database, schema, first access key, socket, then uvicorn until a signal."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import structlog
import typer

from service.cli.connection import write_address
from service.db.session import Database, sqlite_file
from service.errors import DatabaseError, SettingsError
from service.logs import configure_logs
from service.settings import KEY_FILE, Settings

log = structlog.get_logger(__name__)


def serve_api(
    settings: Settings,
    *,
    beside: Callable[[], AbstractContextManager[object]] | None = None,
    as_json: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: of this process.
        beside: what runs meanwhile, a worker and a sender; entered once the socket is bound.
        as_json: print where it listens as one JSON line on standard output.

    Raises:
        DatabaseError: if the database can't be reached, written or upgraded.
        SettingsError: if a CLIPTUNE_WEBHOOK_ setting can't be used, or the address can't be bound.
    """
    from service.webhooks.sender import read_settings

    configure_logs(settings)
    # Before anything is made or bound, like every bad setting.
    read_settings(settings)
    prepare_home(settings)
    database = Database(settings.resolved_database_url, journal_mode=settings.sqlite_journal_mode)
    try:
        database.wait_until_reachable(settings.database_wait_seconds)
        new_key = _prepare_database(database, settings)
        with bind(settings) as listener, contextlib.ExitStack() as stack:
            url = url_of(settings, listener)
            stack.callback(write_address(settings.home_path, url).unlink, missing_ok=True)
            if beside is not None:
                stack.enter_context(beside())
            _greet(settings, url, database, new_key=new_key, as_json=as_json)
            _run(settings, database, listener)
    finally:
        database.close()


def prepare_home(settings: Settings) -> None:
    """Make ``home`` and the folder of a SQLite file, readable by this user alone.

    Args:
        settings: of this process.

    Raises:
        DatabaseError: ``database_not_writable`` if that is not allowed.
    """
    file = (
        sqlite_file(settings.resolved_database_url)
        if settings.resolved_database_url.startswith("sqlite")
        else None
    )
    for folder in {settings.home_path, *([file.parent] if file and not settings.database_url else [])}:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(
                f"the folder {folder} can't be made ({error.strerror}): set CLIPTUNE_HOME to one this user may write",
                code="database_not_writable",
            ) from None


def _prepare_database(database: Database, settings: Settings) -> bool:
    from service.db.migrate import upgrade
    from service.keys import ensure_first_key

    upgrade(database)
    return ensure_first_key(database, settings.home_path) is not None


@contextlib.contextmanager
def bind(settings: Settings) -> Iterator[socket.socket]:
    """A listening socket on the settings' address; port 0 picks a free one.

    Args:
        settings: ``host`` and ``port``.

    Yields:
        The socket.

    Raises:
        SettingsError: ``port_in_use`` or ``address_unusable``.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(1024)
        except OSError as error:
            problem = _address_error(settings, error)
            raise problem from None
        yield listener


def _address_error(settings: Settings, error: OSError) -> SettingsError:
    if error.errno == errno.EADDRINUSE:
        problem = SettingsError(
            f"port {settings.port} on {settings.host} is in use: another `cliptune serve` may be running; "
            "stop it, or choose another port with --port or CLIPTUNE_PORT (0 picks a free one)"
        )
        problem.code = "port_in_use"
        return problem
    problem = SettingsError(
        f"can't listen on {settings.host} port {settings.port} ({error.strerror}): choose others with --host, --port"
    )
    problem.code = "address_unusable"
    return problem


def url_of(settings: Settings, listener: socket.socket) -> str:
    """The address to open from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _greet(settings: Settings, url: str, database: Database, *, new_key: bool, as_json: bool) -> None:
    key_file: Path = settings.home_path / KEY_FILE
    if as_json:
        document = {"url": url, "version": version("cliptune"), "pid": os.getpid(), "key_file": str(key_file)}
        typer.echo(json.dumps(document))
    typer.echo(f"cliptune listens on {url}   documentation: {url}/docs   stop: Ctrl-C", err=True)
    if new_key:
        typer.echo(
            f"an access key was made and is kept in {key_file}; the command line finds it there", err=True
        )
    log.info("api ready", action="api_ready", url=url, database=database.dialect)


def _run(settings: Settings, database: Database, listener: socket.socket) -> None:
    import uvicorn

    from service.api.app import create_app, end_streams

    app = create_app(settings, database)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )

    class Server(uvicorn.Server):
        """Tells open event streams that the end has come; their readers reconnect elsewhere or later."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            end_streams(app)
            super().handle_exit(sig, frame)

    # uvicorn raises the signal again when it has shut down; by default SIGTERM would then end this process
    # before the worker is stopped. A second signal, while the worker stops, has its usual effect.
    handlers = {each: signal.signal(each, _ignore) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        Server(config).run(sockets=[listener])
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Stands where a signal was handled already."""
