"""The command for training jobs and people: which setting is known for this workload, or for something similar."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.study import JsonOption, UrlOption, print_json


def recommend(
    workload: Annotated[
        str | None, typer.Option(help="A registered workload; without one, ask by --optimizer and the rest.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Of what is trained, from a study; enough by itself.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Its class in lower case, such as sgd: also asks for similar studies.")
    ] = None,
    num_parameters: Annotated[int | None, typer.Option(help="Trainable parameters of the model.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Base learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of an optimizer step.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    model_signature: Annotated[str | None, typer.Option(help="Of the model, from a study's probe.")] = None,
    median_norm: Annotated[
        float | None,
        typer.Option(
            help="Median gradient norm at the start, before clipping: thresholds are relative to it."
        ),
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = "",
) -> None:
    """Print the newest stored recommendation for a workload, or similar studies' ones; exit 1 if there is none."""  # noqa: DOC501
    from service.cli.connection import connect
    from service.cli.summary import neighbour_lines, recommendation_lines

    with connect(url) as client:
        answer = client.find_recommendation(
            workload,
            fingerprint,
            optimizer=optimizer,
            num_parameters=num_parameters,
            learning_rate=learning_rate,
            batch_size=batch_size,
            precision=precision,
            model_signature=model_signature,
            median_norm=median_norm,
        )
    found = answer.recommendation
    if as_json:
        print_json(answer)
    elif found is not None:
        typer.echo(f"{found.workload}   study {found.study_id[:8]}   {found.created_at:%Y-%m-%d}")
        for line in recommendation_lines(found):
            typer.echo(line)
    elif answer.neighbours:
        for line in neighbour_lines(answer.neighbours, answer.reason):
            typer.echo(line)
    else:
        typer.echo(answer.reason, err=True)
    if answer.match == "none":
        raise typer.Exit(1)
