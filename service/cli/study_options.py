"""Options that state a study, shared by the commands that submit one; and the question that they make with a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

StudyWorkloadOption = Annotated[
    str,
    typer.Option(
        "--workload",
        help="A registered workload (`cliptune workloads` lists them), or any name if --external.",
    ),
]
StudyParameterOption = Annotated[
    list[str] | None, typer.Option("--param", help="NAME=VALUE of the workload; repeat it.")
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--method", help="Clipping method to search; repeat it. Default: global_norm."),
]
CurrentOption = Annotated[
    str | None, typer.Option("--current", help="Setting in use today, as METHOD:THRESHOLD.")
]
TrialsOption = Annotated[
    int | None, typer.Option("--trials", help="Clip settings to evaluate, off included. Default: 16.")
]
SeedsOption = Annotated[int | None, typer.Option("--seeds", help="Seeds per setting. Default: 3.")]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Optimizer steps of a full run. Default: 400.")
]
ConfirmSeedsOption = Annotated[
    int | None,
    typer.Option(
        "--confirm-seeds", help="Fresh seeds for the comparison at the end, 0 for none. Default: 6."
    ),
]
LowOption = Annotated[float | None, typer.Option("--threshold-low", help="Lower end of the search range.")]
HighOption = Annotated[float | None, typer.Option("--threshold-high", help="Upper end of the search range.")]
EffectOption = Annotated[
    float | None, typer.Option("--effect", help="Relative difference that matters to you. Default: 0.01.")
]
SpecOption = Annotated[
    Path | None, typer.Option("--spec", help="JSON file with the study; options win over it.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="A name; the same name and study again gives the same study.")
]


def _minutes(value: float | None) -> float | None:
    """A time to wait.

    Raises:
        BadParameter: if it is none.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"must be > 0, got {value:g}: leave it out for the default")
    return value


TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout-minutes",
        callback=_minutes,
        help="How long to wait at most, > 0, instead of as long as it takes; the study goes on.",
    ),
]


def question_of(
    spec: Path | None,
    *,
    parameters: Sequence[str] | None = None,
    current: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The question that a file and options make.

    Args:
        spec: of ``--spec``.
        parameters: each ``--param``.
        current: of ``--current``.
        **options: further fields of a study; None for those that were not given.

    Returns:
        The fields, which the service checks; options win over the file.

    Raises:
        BadParameter: if the file can't be read, or a parameter is none.
        SpecError: if ``current`` is no setting.
    """
    given: dict[str, Any] = {
        **options,
        "parameters": dict(map(parse_parameter, parameters)) if parameters else None,
        "current": _parse_setting(current) if current else None,
    }
    return read_spec(spec) | {key: value for key, value in given.items() if value is not None}


def parse_parameter(text: str) -> tuple[str, Any]:
    """A workload's parameter as NAME=VALUE, the value in JSON or as it stands.

    Args:
        text: the option.

    Returns:
        Name and value.

    Raises:
        BadParameter: without a name or an equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"--param must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def read_spec(file: Path | None) -> dict[str, Any]:
    """A study from a JSON file.

    Args:
        file: None gives an empty one.

    Returns:
        What it holds.

    Raises:
        BadParameter: if it can't be read, or holds no JSON object.
    """
    if file is None:
        return {}
    try:
        # With or without the mark that editors on Windows begin a file with.
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--spec {file}: {error}") from None
    if not isinstance(document, dict):
        raise typer.BadParameter(f"--spec {file} must hold a JSON object")
    return document


def _parse_setting(text: str) -> dict[str, Any]:
    import dataclasses

    from tuner.spec import ClipSetting

    return dataclasses.asdict(ClipSetting.parse(text))
