"""Commands for operators: serve everything on one machine, or the API and the workers apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from service.settings import Settings

HostOption = Annotated[
    str | None, typer.Option(help="Address to listen on. Default: CLIPTUNE_HOST or 127.0.0.1.")
]
PortOption = Annotated[
    int | None, typer.Option(help="Port; 0 picks a free one. Default: CLIPTUNE_PORT or 8765.")
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print where it listens as one JSON line on standard output.")
]


def serve(host: HostOption = None, port: PortOption = None, as_json: JsonOption = False) -> None:
    """Run the API, one worker beside it and the sender of webhooks, until Ctrl-C or SIGTERM."""
    import contextlib
    from collections.abc import Iterator

    from service.cli.server import serve_api
    from service.cli.worker_process import WorkerProcess
    from service.webhooks.sender_process import SenderThread

    settings = _settings(host, port)

    @contextlib.contextmanager
    def beside() -> Iterator[None]:
        with SenderThread(settings), WorkerProcess():
            yield

    serve_api(settings, beside=beside, as_json=as_json)


def api(host: HostOption = None, port: PortOption = None, as_json: JsonOption = False) -> None:
    """Run the API alone; it upgrades the database's schema first."""
    from service.cli.server import serve_api

    serve_api(_settings(host, port), as_json=as_json)


def worker(
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", hidden=True)] = False,
) -> None:
    """Run a worker alone: it takes studies from the database and drives their trainings."""
    from service.logs import configure_logs
    from service.settings import load_settings
    from service.worker.worker import run_worker

    settings = load_settings()
    configure_logs(settings)
    run_worker(settings, until_stdin_closes=until_stdin_closes)


def deliver() -> None:
    """Run the sender of webhooks alone; several share the work. `cliptune serve` has one already."""
    from service.logs import configure_logs
    from service.settings import load_settings
    from service.webhooks.sender_process import run_sender

    settings = load_settings()
    configure_logs(settings)
    run_sender(settings)


def settings(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List every setting with its value, default and meaning; secrets are hidden."""
    import json
    from importlib.util import find_spec

    from service.logs import without_secrets
    from service.settings import PREFIX, load_settings

    loaded = load_settings()
    has_ray = find_spec("ray") is not None
    rows = []
    for name, field in type(loaded).model_fields.items():
        # Of no use without the extra, unless somebody thinks they are.
        if name.startswith("ray_") and not has_ray and getattr(loaded, name) == field.default:
            continue
        rows.append(
            {
                "name": PREFIX + name.upper(),
                # A database URL may hold a password.
                "value": without_secrets(str(getattr(loaded, name))),
                "default": str(field.default),
                "description": field.description or "",
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        marker = " " if row["value"] == row["default"] else "*"
        typer.echo(f"{marker} {row['name']}={row['value']}")
        typer.echo(f"    {row['description']}")


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the demo's folder behind.")] = False,
) -> None:
    """Start a service in a temporary folder, run a study on real text, print its recommendation, stop."""
    from service.cli.demo import run_demo

    run_demo(keep=keep)


def _settings(host: str | None, port: int | None) -> Settings:
    from service.settings import load_settings

    given: dict[str, Any] = {
        name: value for name, value in (("host", host), ("port", port)) if value is not None
    }
    return load_settings(**given)
