"""The first screen: a service in a temporary folder, a study on real text, its recommendation, and a clean stop.

What it shows is what a user would do by hand: `cliptune serve`, `cliptune submit --wait`. The folder and every
process are gone afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

from service.cli.connection import ADDRESS_FILE
from service.errors import ServiceError
from service.settings import KEY_FILE

#: What the demo tunes: a recurrent character model whose learning rate is high enough for clipping to matter.
STUDY = [
    "--workload",
    "charlm-rnn",
    "--param",
    "learning_rate=6",
    "--trials",
    "16",
    "--seeds",
    "5",
    "--steps",
    "300",
    "--current",
    "global_norm:1",
]
#: How long the service may take to start; the worker imports torch meanwhile. In seconds.
_START_SECONDS = 120.0
_STOP_SECONDS = 40.0


class DemoError(ServiceError):
    """The demo's service did not start."""

    code = "demo_failed"


def run_demo(*, keep: bool) -> None:
    """Start, submit, follow, print, stop.

    Args:
        keep: leave the folder with the database and the service's log behind.

    Raises:
        DemoError: if the service does not start; carries the end of its log.
        Exit: with the study's exit code.
    """
    home = Path(tempfile.mkdtemp(prefix="cliptune-demo-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")}
    environment |= {"CLIPTUNE_HOME": str(home), "CLIPTUNE_PORT": "0", "CLIPTUNE_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "service.cli.main"]
    typer.echo("$ cliptune serve &", err=True)
    with (home / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "serve"], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            _wait_until_ready(home, server, environment, command)
            typer.echo(f"$ cliptune submit {' '.join(STUDY)} --wait", err=True)
            status = subprocess.run([*command, "submit", *STUDY, "--wait"], env=environment).returncode
        finally:
            _stop(server)
            if keep:
                typer.echo(f"the demo's folder: {home}", err=True)
            else:
                shutil.rmtree(home, ignore_errors=True)
    raise typer.Exit(status)


def _wait_until_ready(
    home: Path, server: subprocess.Popen[bytes], environment: dict[str, str], command: list[str]
) -> None:
    from service.client import Client

    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if (home / ADDRESS_FILE).exists() and (home / KEY_FILE).exists():
            url = json.loads((home / ADDRESS_FILE).read_text())["url"]
            with Client(url, (home / KEY_FILE).read_text().strip()) as client:
                while time.monotonic() < deadline and server.poll() is None:
                    try:
                        if client.ready().ready:
                            return
                    except ServiceError:
                        pass
                    time.sleep(0.1)
        time.sleep(0.1)
    tail = "\n".join((home / "serve.log").read_text(errors="replace").splitlines()[-20:])
    raise DemoError(
        f"the demo's service did not start within {_START_SECONDS:g} s; the end of its log:\n{tail}"
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
