"""The `cliptune run` command: train the lanes of a study with a command of your own, here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from service.cli.study import UrlOption, read_spec

if TYPE_CHECKING:
    from types import FrameType

    from service.agent.agent import Tally
    from service.schemas import StudyOut

#: What a training must not see: it needs no access to the service.
_SECRETS = ("CLIPTUNE_API_KEY", "CLIPTUNE_ID_TOKEN")


def run(
    command: Annotated[
        list[str],
        typer.Argument(
            help="After --: your command, with {threshold}, {seed}, ... where it takes them.",
            metavar="-- COMMAND...",
        ),
    ],
    study: Annotated[str, typer.Option(help="Id of the study, or its first characters.")] = "",
    workload: Annotated[
        str, typer.Option(help="Instead of --study: submit one for what you train, under any name.")
    ] = "",
    steps: Annotated[
        int | None, typer.Option(help="With --workload: optimizer steps of a full run. Default: 400.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="With --workload: what is to be minimized. Default: val_loss.")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="With --workload: JSON file with more of the study; options win over it."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="With --workload: name of the study; the same name and study again goes on with it."
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(help="Where metrics are: stdout, a file of JSON lines, or tensorboard:FOLDER."),
    ] = "stdout",
    objective_key: Annotated[
        str | None, typer.Option(help="Name of the objective there. Default: the study's objective.")
    ] = None,
    norm_key: Annotated[
        str, typer.Option(help="Name of the gradient norm before clipping there.")
    ] = "grad_norm",
    step_key: Annotated[str, typer.Option(help="Name of the optimizer steps in JSON lines.")] = "step",
    off: Annotated[
        str, typer.Option(help="What {threshold} is without clipping; for torch's clip_grad_norm_: inf.")
    ] = "0",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the lanes' {output} folders. Default: temporary ones."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Stop after so many lanes.", min=1)] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait while no lane is ready, or stop.")
    ] = True,
    grace: Annotated[
        float, typer.Option(help="Seconds between SIGTERM and SIGKILL to the command.", min=0)
    ] = 10.0,
    stall: Annotated[
        float, typer.Option(help="Give a lane up after so many seconds without metrics; 0 never.", min=0)
    ] = 600.0,
    agent_name: Annotated[
        str | None,
        typer.Option(help="Name of this agent, one of its own each. Default: made of host and process."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not pass the command's output on.")] = False,
    url: UrlOption = "",
) -> None:
    """Train lanes of a study with a command of yours, where this one is typed; several may do so at once."""
    from service.agent.agent import Asker, Tally, run_lanes
    from service.agent.command import doubts, require_known
    from service.agent.lane import Plan
    from service.agent.sources import MetricsPlace
    from service.cli.connection import connect

    place = MetricsPlace.parse(metrics)
    _require_folder(output)
    client_id = agent_name or f"{socket.gethostname()[:50]}-{os.getpid()}-{uuid.uuid4()}"
    question = {"workload": workload or None, "num_steps": steps, "objective": objective}
    document = _question(study, spec, question, name)
    with connect(url) as client:
        if document is None:
            found = client.find_study(study)
        else:
            # A command that no study could be trained with leaves none behind.
            require_known(command, place.path, document)
            _require_program(command[0])
            found = client.create_study(document, name=name)
            _say(f"study {found.id}   {found.state}")
        require_known(command, place.path, found.spec)
        _require_program(command[0])
        for doubt in doubts(command, place.path, found.spec):
            _say(f"warning: {doubt}")
        plan = Plan(
            command=tuple(command),
            study_id=found.id,
            metrics=place,
            objective_key=objective_key,
            norm_key=norm_key,
            step_key=step_key,
            off=off,
            output=output,
            grace_seconds=grace,
            stall_seconds=stall,
            environment=_environment(),
            outlets=(None, None) if quiet else (sys.stdout.buffer, sys.stderr.buffer),
        )
        tally = Tally()
        try:
            with _signals_end_the_command():
                asker = Asker(client=client, study_id=found.id, client_id=client_id, waits=wait, say=_say)
                run_lanes(asker, plan, tally, max_lanes=trials)
        finally:
            _say(f"{tally}; the study: cliptune show {found.id[:8]}")
        _end_with(client.get_study(found.id), tally)


def _question(
    study: str, spec: Path | None, options: Mapping[str, Any], name: str | None
) -> dict[str, Any] | None:
    """What to submit; None if a study is named that exists.

    Raises:
        BadParameter: if both are given, or neither.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if study:
        if given or spec or name:
            raise typer.BadParameter("--study names a study that exists: leave out what is for a new one")
        return None
    document = read_spec(spec) | given
    if not document.get("workload"):
        raise typer.BadParameter("--study ID is missing, or --workload NAME to submit one")
    return {"parameters": {}, "methods": ["global_norm"]} | document | {"external": True}


def _require_program(program: str) -> None:
    """Refuse a program that is not there, before anything is leased.

    Raises:
        CommandError: if there is none of that name.
    """
    from service.agent.command import placeholders_of
    from service.agent.errors import CommandError

    if not placeholders_of(program) and shutil.which(program) is None:
        raise CommandError(f"no program is called {program!r} here: check its name and the PATH")


def _require_folder(folder: Path | None) -> None:
    """Make the folder of --output, before anything is leased.

    Raises:
        CommandError: if it can't be made.
    """
    from service.agent.errors import CommandError

    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"--output {folder} can't be made: {error.strerror}; name another folder"
        ) from None


def _end_with(study: StudyOut, tally: Tally) -> None:
    """Say how the study ended, if it did, and choose the exit code.

    Raises:
        Exit: with code 5 if the study ended without a recommendation, or every lane failed here.
    """
    if study.error is not None:
        _say(f"study {study.id} {study.state}: {study.error.detail.strip()} [{study.error.code}]")
    if study.error is not None or tally.has_only_failed:
        raise typer.Exit(5)


def _environment() -> dict[str, str]:
    """The environment of the command: this one's without its key; a Python program's output comes as it is printed."""
    passed_on = {key: value for key, value in os.environ.items() if key not in _SECRETS}
    return {"PYTHONUNBUFFERED": "1"} | passed_on


@contextlib.contextmanager
def _signals_end_the_command() -> Iterator[None]:
    """SIGTERM, and SIGHUP where it is not ignored, become an exit that lets the lane be given back first."""
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    """End as if by the signal.

    Raises:
        SystemExit: always.
    """
    del frame
    raise SystemExit(128 + number)


def _say(line: str) -> None:
    # Standard output belongs to the command.
    typer.echo(line, err=True)
