"""Commands for users: submit a study, watch it, look at it, extend it, cancel it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.study_options import (
    ConfirmSeedsOption,
    CurrentOption,
    EffectOption,
    HighOption,
    LowOption,
    MethodOption,
    NameOption,
    SeedsOption,
    SpecOption,
    StepsOption,
    StudyParameterOption,
    StudyWorkloadOption,
    TimeoutOption,
    TrialsOption,
    question_of,
)
from service.cli.study_options import parse_parameter as parse_parameter
from service.cli.study_options import read_spec as read_spec

if TYPE_CHECKING:
    from service.client import Client
    from service.schemas import StudyOut

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")
]
UrlOption = Annotated[
    str, typer.Option("--url", help="Address of the service; default: CLIPTUNE_URL or the local one.")
]
StudyArgument = Annotated[str, typer.Argument(help="Id of the study, or its first characters.")]


def submit(
    workload: StudyWorkloadOption = "",
    external: Annotated[
        bool,
        typer.Option("--external", help="Trials are trained by `cliptune run` or over HTTP, not by workers."),
    ] = False,
    objective: Annotated[
        str | None,
        typer.Option(help="What external trainings report, to be minimized. Default: val_loss."),
    ] = None,
    parameter: StudyParameterOption = None,
    method: MethodOption = None,
    current: CurrentOption = None,
    trials: TrialsOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    cohort_size: Annotated[int | None, typer.Option(help="Settings trained together. Default: 8.")] = None,
    confirm_seeds: ConfirmSeedsOption = None,
    low: LowOption = None,
    high: HighOption = None,
    rate_low: Annotated[
        float | None,
        typer.Option("--learning-rate-low", help="Lowest factor on the learning rate, to tune it too."),
    ] = None,
    rate_high: Annotated[
        float | None, typer.Option("--learning-rate-high", help="Highest factor on the learning rate.")
    ] = None,
    effect: EffectOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search. Default: 0.")] = None,
    lanes: Annotated[
        str | None,
        typer.Option(help="Lanes trained as one program: auto, solo, or the most. Default: auto."),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(help="-10 to 10: higher goes first; above 0 takes an admin's key. Default: 0."),
    ] = None,
    spec: SpecOption = None,
    name: NameOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the study and print its recommendation.")
    ] = False,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Submit a study; with --wait, follow it to its recommendation."""
    from service.cli.connection import connect

    document = question_of(
        spec,
        workload=workload or None,
        external=external or None,
        objective=objective,
        parameters=parameter,
        methods=method or None,
        current=current,
        num_trials=trials,
        num_seeds=seeds,
        num_confirm_seeds=confirm_seeds,
        num_steps=steps,
        cohort_size=cohort_size,
        threshold_low=low,
        threshold_high=high,
        learning_rate_low=rate_low,
        learning_rate_high=rate_high,
        effect=effect,
        seed=seed,
        priority=priority,
        lanes=int(lanes) if lanes and lanes.isdigit() else lanes,
    )
    with connect(url) as client:
        _queued(client, client.create_study(document, name=name), wait=wait, as_json=as_json)


def extend(
    study: StudyArgument,
    seeds: Annotated[
        int | None,
        typer.Option(help="Further fresh seeds. Default: as many as would about settle the study."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the study and print its new recommendation.")
    ] = False,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Compare on further fresh seeds: a study that has ended runs again, to the next version of its recommendation."""
    from service.cli.connection import connect

    with connect(url) as client:
        extended = client.extend_study(client.find_study(study).id, seeds)
        _queued(client, extended, wait=wait, as_json=as_json)


def watch(
    study: StudyArgument,
    timeout_minutes: TimeoutOption = None,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Follow a study until it ends, then print its recommendation; exit 4 if the time is over before."""
    from service.cli.connection import connect

    with connect(url) as client:
        _follow(client, client.find_study(study), as_json=as_json, limit_minutes=timeout_minutes)


def show(study: StudyArgument, as_json: JsonOption = False, url: UrlOption = "") -> None:
    """Show a study: where it stands, its settings as a chart and a table, its recommendation."""
    from service.cli.connection import connect
    from service.cli.progress import StudyView
    from service.cli.summary import trial_lines

    with connect(url) as client:
        found = client.find_study(study)
        trials = client.list_trials(found.id)
        if as_json:
            trial_documents = [trial.model_dump(mode="json") for trial in trials]
            typer.echo(json.dumps(found.model_dump(mode="json") | {"trials": trial_documents}, indent=2))
            return
        typer.echo(f"{StudyView(found).header()}   {found.state}")
        if found.error is not None:
            typer.echo(f" error      {found.error.detail.strip()} [{found.error.code}]")
        for line in trial_lines(trials):
            typer.echo(line)
        _print_result(client, found)


def studies(
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=1000)] = 20,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """List studies, newest first."""
    from itertools import islice

    from service.cli.connection import connect

    with connect(url) as client:
        found = list(islice(client.iter_studies(), limit))
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    for each in found:
        verdict = f"{each.result.verdict}  {each.result.setting}" if each.result else ""
        typer.echo(
            f"{each.id[:8]}  {each.created_at:%Y-%m-%d %H:%M}  {each.state:<10} {each.workload:<16} {verdict}".rstrip()
        )


def workloads(as_json: JsonOption = False, url: UrlOption = "") -> None:
    """List what can be trained, with each workload's parameters."""
    from service.cli.connection import connect

    with connect(url) as client:
        found = client.list_workloads()
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    for each in found:
        typer.echo(f"{each.name}   {each.description}   minimizes {each.objective}")
        for name, field in each.parameters["properties"].items():
            low, high = field.get("minimum"), field.get("maximum")
            bounds = f"   {low:g} to {high:g}" if low is not None and high is not None else ""
            typer.echo(f"    {name} = {field['default']}{bounds}   {field['description']}")
    if not found:
        typer.echo("no worker has registered a workload yet: start one with `cliptune worker`", err=True)


def workers(as_json: JsonOption = False, url: UrlOption = "") -> None:
    """List the workers of the last day, and what each of their devices does."""
    from service.cli.connection import connect

    with connect(url) as client:
        found = client.list_workers()
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    for each in found:
        state = "alive" if each.alive else "stopped" if each.stopped_at else "silent"
        typer.echo(f"{each.id[:8]}  {each.hostname}  {state:<8} seen {each.seen_at:%Y-%m-%d %H:%M:%S} UTC")
        for slot in each.slots if each.alive else ():
            does = f"study {slot.study_id[:8]}" if slot.study_id else slot.reason or ""
            typer.echo(f"    {slot.name:<8} {slot.state:<6} {does}".rstrip())
    if not found:
        typer.echo("no worker was seen within a day: start one with `cliptune worker`", err=True)


def cancel(study: StudyArgument, as_json: JsonOption = False, url: UrlOption = "") -> None:
    """Ask a study to stop; what it trains now is killed within seconds."""
    from service.cli.connection import connect

    with connect(url) as client:
        found = client.cancel_study(client.find_study(study).id)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"study {found.id}   {found.state if found.done else 'cancel requested'}")


def _queued(client: Client, study: StudyOut, *, wait: bool, as_json: bool) -> None:
    """What a study that was just queued leads to: its id, or with ``wait`` its recommendation."""
    if wait:
        _follow(client, study, as_json=as_json)
    elif as_json:
        print_json(study)
    else:
        typer.echo(f"study {study.id}   {study.state}")
        if study.spec.get("external"):
            typer.echo(
                f"train it:  cliptune run --study {study.id[:8]} -- COMMAND --clip {{threshold}} --seed {{seed}}"
            )
        typer.echo(f"follow it: cliptune watch {study.id[:8]}")


def _follow(client: Client, study: StudyOut, *, as_json: bool, limit_minutes: float | None = None) -> None:
    """Show a study until it ends; say how to resume where the waiting ends before.

    Raises:
        Exit: with code 5 if the study did not succeed.
        StillRunningError: if the time was over.
    """
    from service.cli.following import StillRunningError, say, wait_for_study

    wait_for_study(client, study, quiet=as_json, limit_minutes=limit_minutes)
    ended = client.get_study(study.id)
    if limit_minutes is not None and not ended.done:
        raise StillRunningError(study.id, limit_minutes)
    if as_json:
        print_json(ended)
    else:
        _print_result(client, ended)
    if ended.error is not None:
        if not as_json:
            text = f"study {ended.id} {ended.state}: {ended.error.detail.strip()} [{ended.error.code}]"
            # A traceback keeps its lines; none of them is a command for whoever reads the log.
            for line in text.splitlines():
                say(line)
        raise typer.Exit(5)


def _print_result(client: Client, study: StudyOut) -> None:
    from service.cli.summary import chart_lines, charted_method, recommendation_lines

    trials = client.list_trials(study.id)
    best = study.result.best if study.result else None
    method = charted_method(trials, best)
    interval = study.result.interval if study.result else None
    objective = study.result.objective if study.result else "objective"
    if method is not None:
        for line in chart_lines(trials, method, objective=objective, interval=interval):
            typer.echo(line)
    if study.result is not None:
        typer.echo("")
        for line in recommendation_lines(study.result):
            typer.echo(line)


def print_json(model: Any) -> None:
    """Print an answer as the service gave it."""
    typer.echo(model.model_dump_json(indent=2))
