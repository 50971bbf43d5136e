"""Options that `cliptune check` and `cliptune apply` share: whose config it is, and what it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
