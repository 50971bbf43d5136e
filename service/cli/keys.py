"""The `cliptune keys` commands: see the access keys of a tenant, make one for a pipeline, revoke one.

They need a key with the scope ``admin``. A new key is the only thing on standard output, so that a script can put it
where it belongs; what it is good for is on standard error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.study import JsonOption, UrlOption, print_json
from service.cli.texts import print_text

if TYPE_CHECKING:
    from service.schemas import KeyMade, KeyOut
    from service.scopes import Scope

#: A live key that expires within this time is warned about.
_SOON = timedelta(days=14)
_HEADER = ("id", "label", "scopes", "expires", "last used", "state")
#: What a scope lets its holder do, in words.
_ABILITIES = {
    "read": "read studies and recommendations (`cliptune check`)",
    "write": "submit, cancel and read studies",
    "worker": "train lanes of external studies",
    "admin": "do everything, keys included",
}

app = typer.Typer(help="Access keys: list, make and revoke them.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Access keys: list, make and revoke them."""


@app.command("list")
def list_keys(as_json: JsonOption = False, url: UrlOption = "") -> None:
    """List the access keys of your tenant, newest first; never a key itself."""
    from service.cli.connection import connect

    with connect(url) as client:
        found = list(client.iter_keys())
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    print_text("".join(f"{line}\n" for line in key_lines(found)))
    for line in expiry_warnings(found, datetime.now(UTC)):
        typer.echo(f"cliptune: {line}", err=True)


@app.command()
def create(
    label: Annotated[str, typer.Option(help="What the key is for, 1 to 100 characters.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do: read, write, worker or admin; repeat it. Default: read, enough for `cliptune check`."
        ),
    ] = None,
    expires_in_days: Annotated[
        int | None, typer.Option(help="How long it lives, 1 to 3650 days. Default: 90.")
    ] = None,
    never_expires: Annotated[
        bool, typer.Option("--never-expires", help="Make a key that lives until it is revoked.")
    ] = False,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Make an access key and print it, this once: the service keeps only a hash of it."""  # noqa: DOC501
    from service.cli.connection import connect
    from service.schemas import DEFAULT_EXPIRY_DAYS

    if never_expires and expires_in_days is not None:
        raise typer.BadParameter("--never-expires and --expires-in-days contradict: leave one out")
    days = DEFAULT_EXPIRY_DAYS if expires_in_days is None else expires_in_days
    scopes = _scopes(scope or ("read",))
    with connect(url) as client:
        made = client.create_key(label, scopes, expires_in_days=None if never_expires else days)
    if as_json:
        print_json(made)
        return
    # Before the key: where that can't be written, its id tells which one to revoke.
    for line in made_lines(made):
        typer.echo(f"cliptune: {line}", err=True)
    typer.echo(made.key)


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(help="Its id: 8 characters, in the list and in the key after cliptune_live_.")
    ],
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Revoke an access key: within a minute it is refused everywhere."""
    from service.cli.connection import connect

    with connect(url) as client:
        revoked = client.revoke_key(key_id)
    if as_json:
        print_json(revoked)
    else:
        print_text(
            f"key {revoked.id} ({revoked.label}) is revoked since {revoked.revoked_at:%Y-%m-%d %H:%M} UTC\n"
        )


def key_lines(keys: Sequence[KeyOut]) -> list[str]:
    """Keys as a table.

    Args:
        keys: in the order of the rows.

    Returns:
        Lines without line ends, the header first.
    """
    rows = [_HEADER, *(_cells(each) for each in keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def expiry_warnings(keys: Sequence[KeyOut], now: datetime) -> list[str]:
    """A sentence for each live key that expires soon.

    Args:
        keys: any.
        now: aware.

    Returns:
        The sentences, the first to expire first.
    """
    ending = [
        (each.expires_at, each)
        for each in keys
        if each.state == "live" and each.expires_at is not None and each.expires_at - now <= _SOON
    ]
    return [
        f"the key {each.id} ({each.label}) expires on {expires_at:%Y-%m-%d}, in {_days(expires_at - now)}: make "
        "another one with `cliptune keys create`, put it in its place, then revoke this one"
        for expires_at, each in sorted(ending, key=lambda pair: pair[0])
    ]


def made_lines(made: KeyMade) -> list[str]:
    """What a person should know of a new key.

    Args:
        made: the key.

    Returns:
        Sentences.
    """
    until = (
        "until it is revoked" if made.expires_at is None else f"until {made.expires_at:%Y-%m-%d %H:%M} UTC"
    )
    abilities = " and ".join(_ABILITIES.get(scope, scope) for scope in made.scopes)
    return [
        "this is the only time the key is shown: keep it as a secret of the pipeline, under the name CLIPTUNE_API_KEY",
        f"it may {abilities}, {until}",
        f"to revoke it: cliptune keys revoke {made.id}",
    ]


def _scopes(names: Sequence[str]) -> list[Scope]:
    """The scopes of these names.

    Raises:
        BadParameter: for a name that is none.
    """
    from service.scopes import ALL_SCOPES

    known = {str(scope): scope for scope in ALL_SCOPES}
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"--scope must be one of {', '.join(known)}, got {name!r}")
    return [known[name] for name in names]


def _cells(key: KeyOut) -> tuple[str, ...]:
    expires = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d}"
    used = "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:%M}"
    return key.id, key.label, ",".join(key.scopes), expires, used, key.state


def _days(time: timedelta) -> str:
    days = time // timedelta(days=1)
    if days < 1:
        return "less than a day"
    return f"{days} day{'s' if days > 1 else ''}"
