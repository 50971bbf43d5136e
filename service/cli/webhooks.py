"""The `cliptune webhooks` commands: have studies tell a server of yours how they ended.

They need a key with the scope ``admin``. A new secret is the only thing on standard output, so that a script can put it
where it belongs; what it is good for is on standard error.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.study import JsonOption, UrlOption, print_json
from service.cli.texts import print_text

if TYPE_CHECKING:
    from datetime import datetime

    from service.schemas import DeliveryOut, WebhookOut, WebhookSecretOut

_WEBHOOK_HEADER = ("id", "state", "events", "url")
_DELIVERY_HEADER = ("id", "event", "state", "attempt", "created", "next", "answer")

WebhookArgument = Annotated[str, typer.Argument(help="Id of the webhook, from the list.")]

app = typer.Typer(help="Webhooks: have studies tell a server of yours how they ended.", no_args_is_help=True)


@app.callback()
def webhooks() -> None:
    """Webhooks: have studies tell a server of yours how they ended."""


@app.command("list")
def list_webhooks(as_json: JsonOption = False, url: UrlOption = "") -> None:
    """List the webhooks of your tenant, oldest first; never a secret."""
    from service.cli.connection import connect

    with connect(url) as client:
        found = client.list_webhooks()
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    print_text("".join(f"{line}\n" for line in webhook_lines(found)))


@app.command()
def create(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Where events are sent: https://HOST/PATH.")
    ],
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="study.succeeded, study.failed, study.cancelled or recommendation.changed; repeat it. Default: all."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="For people, up to 100 characters.")] = "",
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Have events sent to an address, and print the secret that signs them, this once."""
    from service.cli.connection import connect

    with connect(url) as client:
        made = client.create_webhook(target, event, description=description)
    _print_secret(made, f"webhook {made.id} sends {', '.join(made.events)}", as_json=as_json)


@app.command()
def delete(webhook: WebhookArgument, as_json: JsonOption = False, url: UrlOption = "") -> None:
    """Delete a webhook, and what was on its way to it."""
    from service.cli.connection import connect

    with connect(url) as client:
        removed = client.delete_webhook(webhook)
    if as_json:
        print_json(removed)
    else:
        print_text(f"webhook {removed.id} to {removed.url} is deleted\n")


@app.command()
def rotate(webhook: WebhookArgument, as_json: JsonOption = False, url: UrlOption = "") -> None:
    """Give a webhook a new secret and print it, this once; the old one signs beside it for 24 hours."""
    from service.cli.connection import connect

    with connect(url) as client:
        rotated = client.rotate_webhook(webhook)
    told = f"webhook {rotated.id} signs with {rotated.num_secrets} secrets for 24 hours: have receivers know both"
    _print_secret(rotated, told, as_json=as_json)


@app.command()
def test(webhook: WebhookArgument, as_json: JsonOption = False, url: UrlOption = "") -> None:
    """Send the event webhook.test; `cliptune webhooks deliveries` shows what came of it."""
    from service.cli.connection import connect

    with connect(url) as client:
        queued = client.test_webhook(webhook)
    if as_json:
        print_json(queued)
    else:
        print_text(f"event {queued.id} is on its way; see: cliptune webhooks deliveries {webhook}\n")


@app.command()
def enable(webhook: WebhookArgument, as_json: JsonOption = False, url: UrlOption = "") -> None:
    """Switch a webhook on again that was switched off because its receiver failed."""
    from service.cli.connection import connect

    with connect(url) as client:
        enabled = client.enable_webhook(webhook)
    if as_json:
        print_json(enabled)
    else:
        print_text(f"webhook {enabled.id} is on\n")


@app.command()
def deliveries(
    webhook: WebhookArgument,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=10_000)] = 20,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """List what was sent to a webhook and what will be, newest first."""
    from service.cli.connection import connect

    with connect(url) as client:
        found = list(itertools.islice(client.iter_deliveries(webhook), limit))
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    print_text("".join(f"{line}\n" for line in delivery_lines(found)))


def webhook_lines(found: Sequence[WebhookOut]) -> list[str]:
    """Webhooks as a table.

    Args:
        found: in the order of the rows.

    Returns:
        Lines without line ends, the header first; under a webhook that is off, why.
    """
    rows = [_WEBHOOK_HEADER, *((each.id, _state(each), ",".join(each.events), each.url) for each in found)]
    lines = _table(rows)
    for index in range(len(found), 0, -1):
        webhook = found[index - 1]
        if webhook.disabled_reason is not None:
            reason = f"    {webhook.disabled_reason}; on again: cliptune webhooks enable {webhook.id}"
            lines.insert(index + 1, reason)
    return lines


def delivery_lines(found: Sequence[DeliveryOut]) -> list[str]:
    """Deliveries as a table.

    Args:
        found: in the order of the rows.

    Returns:
        Lines without line ends, the header first.
    """
    return _table([_DELIVERY_HEADER, *map(_delivery_cells, found)])


def _state(webhook: WebhookOut) -> str:
    if webhook.disabled_at is not None:
        return "off"
    return "on" if webhook.failing_since is None else "failing"


def _delivery_cells(each: DeliveryOut) -> tuple[str, ...]:
    result = each.last_error or ("" if each.last_status is None else str(each.last_status))
    return (
        each.id,
        each.event,
        str(each.state),
        str(each.attempt),
        _minute(each.created_at),
        _minute(each.next_attempt_at),
        result,
    )


def _minute(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _print_secret(made: WebhookSecretOut, told: str, *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    typer.echo(made.secret)
    typer.echo("cliptune: this is the only time the secret is shown: give it to the receiver", err=True)
    typer.echo(f"cliptune: {told}", err=True)
