"""The `cliptune probe` command: gradient norms of a workload in seconds, without a service, and how to read them.

The gradients are taken by a training process, as a worker's are, so that this process loads no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from service.cli.study import JsonOption, parse_parameter
from service.errors import ServiceError, TrainingError
from tuner.spec import MAX_SEEDS

if TYPE_CHECKING:
    from service.launchers.local import TrainingProcess
    from service.launchers.protocol import Broken
    from tuner.evidence import Reference
    from tuner.parameters import ParameterValue

#: How long a training process may take to start and to name its workloads, in seconds.
_START_SECONDS = 120.0
#: How often the process is looked at while it measures, in seconds.
_WAIT_SECONDS = 1.0


class ProbeFailedError(ServiceError):
    """The science package refused to probe: its sentence and its code."""

    code = "probe_failed"

    def __init__(self, detail: str, code: str) -> None:
        self.code = code
        super().__init__(detail)


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
    from importlib.util import find_spec

    from service.launchers.local import LocalLauncher
    from service.settings import load_settings
    from tuner.errors import SpecError, UnknownWorkloadError
    from tuner.parameters import resolve_parameters

    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    settings = load_settings()
    launcher = LocalLauncher.of(settings)
    process = launcher.launch()
    try:
        catalogue = launcher.describe(process, _START_SECONDS)
        known = {each.name: each for each in catalogue.workloads}
        for each in catalogue.refused:
            if each.name == workload:
                raise SpecError("workload", each.reason)
        if workload not in known:
            raise UnknownWorkloadError(workload, known)
        parameters = resolve_parameters(known[workload].parameters, given)
        process.send({"kind": "probe", "workload": workload, "parameters": parameters, "seeds": seeds})
        reference = _receive(process)
    finally:
        process.stop()
    device = process.ready.device if process.ready is not None else "unknown device"
    return parameters, device, reference


def _receive(process: TrainingProcess) -> Reference:
    """The answer to a probe request.

    Raises:
        TrainingError: if the process breaks.
    """
    from service.launchers.protocol import Broken, Done
    from tuner.training.cohort import ProbeMeasured

    reference: Reference | None = None
    while True:
        message = process.receive(_WAIT_SECONDS)
        if isinstance(message, ProbeMeasured):
            reference = message.reference
        elif isinstance(message, Broken):
            refuse(message)
        elif isinstance(message, Done):
            if reference is None:
                raise TrainingError("the training process measured nothing", cause="bad_output")
            return reference


def refuse(broken: Broken) -> NoReturn:
    """Pass on what went wrong: an error of the science package by its own sentence, another with where it came from.

    Raises:
        ProbeFailedError: as `_measure`.
        TrainingError: as `_measure`.
    """
    import tuner.errors

    name, _, sentence = broken.detail.partition(": ")
    kind = getattr(tuner.errors, name, None)
    if isinstance(kind, type) and issubclass(kind, tuner.errors.TunerError):
        raise ProbeFailedError(sentence, kind.code)
    raise TrainingError(f"{broken.detail}\n{broken.traceback}".rstrip(), cause=broken.cause)
