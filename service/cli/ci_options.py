"""Options that the commands for configs share: whose config it is, what it trains, and what is made of a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.study import parse_parameter

if TYPE_CHECKING:
    from service.ci.target import Target

WorkloadOption = Annotated[
    str, typer.Option(help="What the configs train: a registered workload. Default: what the lock file says.")
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option("--param", help="NAME=VALUE that the workload's study was run with; repeat it."),
]
FingerprintOption = Annotated[
    str, typer.Option(help="Of what is trained, from a study; enough by itself, and exact.")
]
FrameworkOption = Annotated[
    str | None, typer.Option(help="Whose config it is. Default: told by the file's keys.")
]
KeyOption = Annotated[
    str | None, typer.Option(help="Where the value is, as a.b.c or as a flag. Default: the framework's key.")
]
FollowOption = Annotated[
    bool,
    typer.Option("--follow", help="Follow aliases, merge keys and ${...} to the number, within the file."),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Ask the lock file instead of the service; no network is used.")
]
LockOption = Annotated[
    Path | None,
    typer.Option("--lock", help="The lock file. Default: cliptune.lock.json at the repository's root."),
]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        help="Of what is printed: table, plain, json, markdown, junit, github, gitlab-codequality and more. "
        "Default: table on a terminal, github on its runners, else plain.",
    ),
]
ReportOption = Annotated[
    list[str] | None, typer.Option("--report", help="A further report, as FORMAT=PATH; repeat it.")
]
FailOnOption = Annotated[
    Literal["outside", "regression", "never"], typer.Option(help="The mildest verdict that fails.")
]
ToleranceOption = Annotated[
    float | None, typer.Option(help="Share by which the recommended range is widened, such as 0.1.")
]
ExitZeroOption = Annotated[
    bool, typer.Option("--exit-zero", help="Exit with 0 whatever is found; failures become warnings.")
]
ServiceErrorOption = Annotated[
    Literal["fail", "warn"],
    typer.Option(help="What a service that is down, or refuses the key, makes of the check."),
]
WriteLockOption = Annotated[
    bool, typer.Option("--write-lock", help="Keep what the service answers in the lock file.")
]


def target_of(workload: str, parameters: list[str] | None, fingerprint: str, *, is_offline: bool) -> Target:
    """What the options say that is trained.

    Args:
        workload: of ``--workload``.
        parameters: each ``--param``.
        fingerprint: of ``--fingerprint``.
        is_offline: whether the service is not asked.

    Returns:
        The target, which names nothing without any of them.

    Raises:
        BadParameter: if a parameter has no workload, or can't be looked up.
    """
    from service.ci.target import Target

    given = dict(map(parse_parameter, parameters or ()))
    if given and not workload:
        raise typer.BadParameter("--param belongs to a workload: give --workload too")
    if given and is_offline:
        raise typer.BadParameter("--param is looked up in the service's studies: give --fingerprint instead")
    return Target(workload=workload, fingerprint=fingerprint, parameters=given)
