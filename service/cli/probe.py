"""The `cliptune probe` command: gradient norms of a workload in seconds, without a service, and how to read them.

The gradients are taken by a training process, as a worker's are, so that this process loads no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.study import JsonOption, parse_parameter
from tuner.spec import MAX_SEEDS

if TYPE_CHECKING:
    from tuner.evidence import Reference
    from tuner.parameters import ParameterValue


def probe(
    workload: Annotated[str, typer.Option(help="A workload of this installation, for example charlm-rnn.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--param", help="NAME=VALUE of the workload; repeat it.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Training seeds whose initial weights are measured.", min=1, max=MAX_SEEDS)
    ] = 3,
    device_less: Annotated[
        bool, typer.Option("--device-less", help="Measure on the CPU even where there is a GPU.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure gradient norms before clipping, without a service; say what rules of thumb make of them."""
    from service.cli.norm_strip import probe_lines
    from tuner.search.prior import prior

    given = dict(map(parse_parameter, parameter or ()))
    if device_less:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    parameters, device, reference = _measure(workload, given, tuple(range(seeds)))
    found = prior(reference)
    if as_json:
        document = {
            "workload": workload,
            "parameters": parameters,
            "num_seeds": seeds,
            "device": device,
            "reference": dataclasses.asdict(reference),
            "prior": dataclasses.asdict(found),
        }
        typer.echo(json.dumps(document, indent=2))
        return
    norms = f"{reference.num_batches} batches over {seeds} seed{'s' if seeds > 1 else ''} on {device}"
    typer.echo(f"{workload}   {norms}, initial weights, before clipping")
    for line in probe_lines(reference, found):
        typer.echo(line)


def _measure(
    workload: str, given: dict[str, Any], seeds: tuple[int, ...]
) -> tuple[dict[str, ParameterValue], str, Reference]:
    """Resolved parameters, device and reference, from a training process that is gone afterwards.

    Raises:
        ModuleNotFoundError: without torch.
        UnknownWorkloadError: if this installation has no such workload.
        SpecError: if the workload can't be used, or a parameter is unknown or out of its bounds.
        ProbeFailedError: if there is no usable gradient, or the model can't be trained.
        TrainingError: if the workload's code raises, or the process breaks.
    """
    from service.launchers.probing import Prober
    from service.settings import load_settings
    from tuner.parameters import resolve_parameters

    with Prober(load_settings()) as prober:
        parameters = resolve_parameters(prober.describe(workload).parameters, given)
        return parameters, prober.device, prober.measure(workload, parameters, seeds)
