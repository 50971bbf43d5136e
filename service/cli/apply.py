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
    from service.ci.judgement import Judgement
    from service.ci.locked import LockFile
    from service.ci.rewrite import Rewrite
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
    branch: Annotated[
        str,
        typer.Option(
            help="Commit the change on a new branch of this name instead, made from HEAD, and print the text for a "
            "pull request; the file itself stays, and nothing is pushed.",
        ),
    ] = "",
    body: Annotated[
        Path | None, typer.Option(help="With --branch: file for that text. Default: standard output.")
    ] = None,
    offline: OfflineOption = False,
    lock: LockOption = None,
    url: UrlOption = "",
) -> None:
    """Write the recommended clip value into a config and print the diff; everything else stays byte for byte."""  # noqa: DOC501
    from service.ci.config import propose
    from service.ci.formats.texts import visible
    from service.ci.gather import Hints, open_values
    from service.ci.judging import Rules, applied_setting, judge_value
    from service.ci.locked import open_lock
    from service.ci.repository import find_root
    from service.ci.target import require_target
    from service.ci.write import write

    if body is not None and not branch:
        raise typer.BadParameter("--body is the text for a pull request: give --branch NAME too")
    root = find_root(Path())
    target = target_of(workload, parameter, fingerprint, is_offline=offline)
    kept = open_lock(lock, root, is_needed=offline)
    hints = Hints(framework=framework, key=key, is_followed=follow)
    value = _only(open_values(file, root=root, keys=kept.keys_of(file), hints=hints))
    require_target(target, kept, [value])
    answer = _answer(value, target, kept, is_offline=offline, url=url)
    setting, why = applied_setting(value, answer, datetime.now(UTC))
    if setting is None:
        typer.echo(f"cliptune: nothing to apply: {visible(why)}", err=True)
        return
    rewrite = propose(value.config, setting, add=add)
    if not rewrite.is_changed:
        typer.echo(f"cliptune: already applied: {visible(str(value.config.located))}", err=True)
        return
    if branch:
        judgement = judge_value(value, answer, Rules(), datetime.now(UTC))
        _propose(rewrite, judgement, branch, body, dry_run=dry_run)
        return
    print_text(rewrite.diff)
    if not dry_run:
        write(rewrite)


def _propose(rewrite: Rewrite, judgement: Judgement, name: str, body: Path | None, *, dry_run: bool) -> None:
    """Commit a change on a branch of its own, and give the text for a pull request."""
    from service.ci.branch import make_branch, plan_branch
    from service.ci.proposal import commit_message, proposal_body

    plan = plan_branch(rewrite, name)
    message, text = commit_message(rewrite, judgement), proposal_body(rewrite, judgement)
    if dry_run:
        typer.echo(f"cliptune: the branch {name} would be made, with the commit:\n\n{message}", err=True)
        print_text(text)
        return
    if body is not None:
        # Before the branch: without its text it would have to be deleted before the next try.
        _write_body(body, text)
    if plan.is_there:
        typer.echo(f"cliptune: already applied: the branch {name} holds this change", err=True)
    else:
        commit = make_branch(plan, message)
        typer.echo(
            f"cliptune: branch {name} at {commit[:12]}; push it with: git push origin {name}", err=True
        )
    if body is None:
        print_text(text)


def _write_body(path: Path, text: str) -> None:
    """Write the text for a pull request.

    Raises:
        BadParameter: if it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise typer.BadParameter(
            f"--body {path} can't be written: {error.strerror}; name another place"
        ) from None


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
