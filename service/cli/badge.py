"""`cliptune badge`: the line for a README that shows what is recommended, without a key in it."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.ci_options import target_of
from service.cli.study import JsonOption, UrlOption, print_json


def badge(
    workload: Annotated[str, typer.Option(help="A registered workload: the badge shows its newest.")] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--param", help="NAME=VALUE that the workload's study was run with; repeat it."),
    ] = None,
    fingerprint: Annotated[
        str, typer.Option(help="Of what is trained, from a study; enough by itself, and exact.")
    ] = "",
    label: Annotated[
        str | None, typer.Option(help="The badge's left side. Default: gradient clipping.")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Print the Markdown of a badge that shows the newest recommendation, for a README; no key is in it."""  # noqa: DOC501
    from service.ci.target import fingerprint_with
    from service.cli.connection import connect

    target = target_of(workload, parameter, fingerprint, is_offline=False)
    if not target.is_named:
        raise typer.BadParameter("the badge of what? give --workload NAME or --fingerprint")
    with connect(url) as client:
        exact = fingerprint_with(client, target) if target.parameters else fingerprint or None
        if target.parameters and exact is None:
            raise typer.BadParameter(
                f"no finished study of {workload} has these parameters: tune it first, or leave out --param"
            )
        found = client.get_badge(workload or None, exact, label=label)
    if as_json:
        print_json(found)
        return
    typer.echo(found.markdown)
    typer.echo(
        f"cliptune: whoever has the address sees this badge, until the key {found.token.partition('.')[0]} is revoked "
        "or expires",
        err=True,
    )
