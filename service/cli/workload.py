"""The `cliptune workload` commands: look at a workload of your own before a study trains it.

The workload is imported and trained by a training process, as a worker's is, so that this process loads no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.study import JsonOption, parse_parameter

if TYPE_CHECKING:
    from service.launchers.local import LocalLauncher
    from tuner.user_loop.findings import Checked, Finding
    from tuner.workloads.registrations import Registrations

#: Width of the columns before a finding's sentence.
_STANDING, _ABOUT = 6, 15

app = typer.Typer(help="Look at workloads of your own.", no_args_is_help=True)


@app.callback()
def workload() -> None:
    """Look at workloads of your own."""


@app.command()
def check(
    workload: Annotated[
        str,
        typer.Argument(
            help="MODULE:ATTRIBUTE, importable from this folder, or the name of a registered workload."
        ),
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("--param", help="NAME=VALUE of the workload; repeat it.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.", min=1, max=10_000)] = 20,
    as_json: JsonOption = False,
) -> None:
    """Train a workload for a few steps and say what to repair; exit code 1 if there is something."""  # noqa: DOC501
    given = dict(map(parse_parameter, parameter or ()))
    checked = _check(workload, given, steps)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(checked), indent=2))
    else:
        for line in checked_lines(checked):
            typer.echo(line)
    raise typer.Exit(1 if checked.num_to_fix else 0)


def checked_lines(checked: Checked) -> list[str]:
    """What was found, as text.

    Args:
        checked: the training process's answer.

    Returns:
        Lines without line ends.
    """
    lines = [f"{checked.workload}   {checked.form}, {checked.num_steps} steps a run on {checked.device}", ""]
    for each in checked.findings:
        lines += _finding_lines(each)
    lines += ["", f"  {'   '.join(_figures(checked))}"]
    count = checked.num_to_fix
    lines.append(f"  {count} thing{'s' if count > 1 else ''} to fix" if count else "  nothing to fix")
    return lines


def _finding_lines(finding: Finding) -> list[str]:
    lines = [f"  {finding.standing:{_STANDING}}{finding.about:{_ABOUT}}{finding.text}"]
    if finding.remedy:
        lines.append(f"  {'':{_STANDING + _ABOUT}}-> {finding.remedy}")
    return lines


def _figures(checked: Checked) -> list[str]:
    """Rates, memory and where the time goes, as far as they were measured."""
    figures = []
    if checked.solo_per_second is not None:
        figures.append(f"solo {checked.solo_per_second:,.0f} steps/s")
    if checked.lanes_per_second is not None:
        figures.append(f"lanes {checked.lanes_per_second:,.0f} steps/s over all lanes")
    if checked.data_share is not None:
        figures.append(f"{checked.data_share:.0%} of the time in train_batch")
    if checked.peak_bytes is not None:
        figures.append(f"peak memory {checked.peak_bytes / 2**20:,.0f} MiB")
    return figures


def _check(workload: str, given: dict[str, Any], steps: int) -> Checked:
    """The training process's answer; the process is gone afterwards.

    Raises:
        ModuleNotFoundError: without torch.
        UnknownWorkloadError: if nothing is registered under the name.
        SpecError: if it has not the form MODULE:ATTRIBUTE.
        ProbeFailedError: if the workload can't be used, or a parameter is unknown or out of its bounds.
        TrainingError: if the process breaks.
    """
    from importlib.util import find_spec

    from service.launchers.local import LocalLauncher
    from service.settings import load_settings
    from tuner.errors import UnknownWorkloadError

    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    settings = load_settings()
    name, registrations = _registered(workload, settings.registrations)
    if registrations.find(name) is None:
        raise UnknownWorkloadError(workload, (each.name for each in registrations))
    launcher = LocalLauncher(
        threads=settings.training_threads,
        kill_grace_seconds=settings.kill_grace_seconds,
        registrations=registrations,
        import_from=(os.getcwd(),),
    )
    checked = _answer(launcher, {"kind": "check", "workload": name, "parameters": given, "num_steps": steps})
    return dataclasses.replace(checked, workload=workload)


def _registered(workload: str, installed: Registrations) -> tuple[str, Registrations]:
    """A name and the registrations that it is one of; MODULE:ATTRIBUTE is registered for this check alone.

    Raises:
        SpecError: if it has not that form.
    """
    from tuner.errors import SpecError
    from tuner.workloads.registrations import Registration, Registrations

    if ":" not in workload:
        return workload, installed
    given = Registration(name=workload.rpartition(":")[2], target=workload, source="the command line")
    if given.fault is not None:
        raise SpecError("workload", f"must be MODULE:ATTRIBUTE or a registered name, got {workload!r}")
    return given.name, Registrations([given])


def _answer(launcher: LocalLauncher, request: dict[str, Any]) -> Checked:
    from service.launchers.probing import receive
    from tuner.user_loop.findings import Checked

    process = launcher.launch()
    try:
        process.send(request)
        # A check is silent until it is through, however many steps it was asked for.
        return receive(process, Checked, math.inf)
    finally:
        process.stop()
