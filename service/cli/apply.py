"""`cliptune apply`: the recommended value, written into a config; one token changes, and the diff says which."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.ci_options import (
    FingerprintOption,
    FollowOption,
    FrameworkOption,
    KeyOption,
    LockOption,
    OfflineOption,
    ParameterOption,
    WorkloadOption,
    target_of,
)
from service.cli.study import UrlOption
from service.cli.texts import print_text

if TYPE_CHECKING:
    from service.ci.gather import Value
    from service.ci.locked import LockFile
    from service.ci.target import Answer, Target


def apply(
    file: Annotated[Path, typer.Argument(help="The config.")],
    workload: WorkloadOption = "",
    parameter: ParameterOption = None,
    fingerprint: FingerprintOption = "",
    framework: FrameworkOption = None,
    key: KeyOption = None,
    follow: FollowOption = False,
    add: Annotated[
        bool, typer.Option("--add", help="Insert the key if it is absent and the framework's default holds.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the diff and write nothing.")] = False,
    offline: OfflineOption = False,
    lock: LockOption = None,
    url: UrlOption = "",
) -> None:
    """Write the recommended clip value into a config and print the diff; everything else stays byte for byte."""
    from service.ci.config import propose
    from service.ci.formats.texts import visible
    from service.ci.gather import Hints, open_values
    from service.ci.judging import applied_setting
    from service.ci.locked import open_lock
    from service.ci.repository import find_root
    from service.ci.target import require_target
    from service.ci.write import write

    root = find_root(Path())
    target = target_of(workload, parameter, fingerprint, is_offline=offline)
    kept = open_lock(lock, root, is_needed=offline)
    hints = Hints(framework=framework, key=key, is_followed=follow)
    value = _only(open_values(file, root=root, keys=kept.keys_of(file), hints=hints))
    require_target(target, kept, [value])
    setting, why = applied_setting(
        value, _answer(value, target, kept, is_offline=offline, url=url), datetime.now(UTC)
    )
    if setting is None:
        typer.echo(f"cliptune: nothing to apply: {visible(why)}", err=True)
        return
    rewrite = propose(value.config, setting, add=add)
    if not rewrite.is_changed:
        typer.echo(f"cliptune: already applied: {visible(str(value.config.located))}", err=True)
        return
    print_text(rewrite.diff)
    if not dry_run:
        write(rewrite)


def _only(values: tuple[Value, ...]) -> Value:
    """The one value of a file.

    Raises:
        BadParameter: if the lock names several of its keys.
    """
    if len(values) > 1:
        keys = ", ".join(each.key for each in values)
        raise typer.BadParameter(f"{values[0].file} has several values, {keys}: name one with --key")
    return values[0]


def _answer(value: Value, target: Target, lock: LockFile, *, is_offline: bool, url: str) -> Answer:
    """What is recommended, from the lock or from the service."""
    from service.ci.target import answer_from_lock, answers_of_service

    if is_offline:
        return answer_from_lock(value, target, lock)
    from service.cli.connection import connect

    with connect(url) as client:
        (answer,) = answers_of_service(client, [value], target, lock)
    return answer
