"""What a worker and its training process say to each other: JSON lines, checked on arrival.

The worker writes requests to the process's standard input, one at a time; the process answers on a pipe of
its own (so that a workload's ``print`` can't be taken for an event) with any number of events and, at the end
of each request, `Done` or `Broken`. The training process holds no database URL and no access key, and what it
says is input: a line that is too long or does not fit these types is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from service.errors import TrainingError
from tuner.evidence import Reference
from tuner.parameters import WorkloadDescription
from tuner.training.cohort import Event
from tuner.user_loop.findings import Checked
from tuner.workloads.registrations import RefusedWorkload

#: Longest accepted line: a rung of the largest cohort, 1000 trials x 32 seeds, has 2.8 MB; a trial of 32 seeds
#: with all that its lanes recorded has 0.1 MB.
MAX_LINE_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The process has imported torch and waits for a request.

    Attributes:
        pid: its process id.
        torch: version of torch.
        device: device it trains on.
        threads: CPU threads torch uses.
        seconds: from the process's start until now.
        num_devices: devices of that kind that it sees.
    """

    pid: int
    torch: str
    device: str
    threads: int
    seconds: float
    num_devices: int = 1
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The workloads this installation can train, and those that are registered and can't be used.

    Attributes:
        workloads: by name.
        refused: by name, each with its reason.
    """

    workloads: tuple[WorkloadDescription, ...]
    refused: tuple[RefusedWorkload, ...] = ()
    kind: Literal["catalogue"] = "catalogue"


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The request waits for a device of a cluster: told every few seconds, because waiting is no stall.

    Attributes:
        seconds: since it was asked for.
        detail: what it waits for, as a sentence.
    """

    seconds: float
    detail: str
    kind: Literal["pending"] = "pending"


@dataclass(frozen=True, kw_only=True)
class PathWanted:
    """A part of a cohort asks which path the others have taken, and waits for the answer."""

    kind: Literal["path_wanted"] = "path_wanted"


@dataclass(frozen=True, kw_only=True)
class Done:
    """The request is finished; everything it yields has been told."""

    kind: Literal["done"] = "done"


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The request ended in an exception.

    Attributes:
        cause: ``bug``, ``oom``, ``device_lost`` if what trained was taken away, or ``bad_output`` of what trained on
            another machine.
        detail: the exception in a line.
        traceback: where it came from.
        trial_id: the trial it happened in, if that is known.
    """

    cause: Literal["bug", "oom", "device_lost", "bad_output"]
    detail: str
    traceback: str
    trial_id: str | None = None
    kind: Literal["broken"] = "broken"


Message = Ready | Catalogue | Checked | Pending | PathWanted | Done | Broken | Event
#: Lines of a worker that are no request but the answer to what a part of a cohort waits for.
ANSWERS = frozenset({"decision", "path"})
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])
_REFERENCE: TypeAdapter[Reference] = TypeAdapter(Reference)


def encode(message: Message | Mapping[str, Any]) -> bytes:
    """One JSON line.

    Args:
        message: an event dataclass, or a request as plain JSON values.

    Returns:
        UTF-8 text that ends in a newline.

    Raises:
        ValueError: if a number is NaN or infinite: divergence is written as None, by its owner.
    """
    document = message if isinstance(message, Mapping) else dataclasses.asdict(message)
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Check one line of a training process.

    Args:
        line: bytes up to and including the newline.

    Returns:
        The message.

    Raises:
        TrainingError: ``bad_output`` if the line is too long or fits no message.
    """
    if len(line) > MAX_LINE_BYTES:
        raise TrainingError(
            f"the training process wrote an event of more than {MAX_LINE_BYTES} bytes", cause="bad_output"
        )
    try:
        # NaN would pass pydantic's own JSON parser and then break the database's.
        return _MESSAGE.validate_python(from_json(line, allow_inf_nan=False))
    except ValueError as error:
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise TrainingError(
            f"the training process wrote a line that is no event ({reason}): {line[:200]!r}",
            cause="bad_output",
        ) from None


def read_reference(document: Mapping[str, Any]) -> Reference:
    """A stored probe result as its type."""
    return _REFERENCE.validate_python(document)
