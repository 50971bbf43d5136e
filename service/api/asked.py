"""What a recommendation is asked for: the parameters of the query, the same at every address, and the search itself."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import Depends, Query
from starlette.concurrency import run_in_threadpool

from service import recommendations
from service.api.deps import Services
from service.errors import InvalidRequestError
from service.recommendations import Found, Subject

#: One line of text: no control characters.
PRINTABLE = r"^[^\x00-\x1f\x7f]+$"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is known of a training.

    Attributes:
        workload: its name.
        fingerprint: of what is trained, enough by itself.
        optimizer: asks for similar studies, with the rest.
        num_parameters: trainable ones of the model.
        learning_rate: the base one.
        batch_size: examples of an optimizer step.
        precision: of the forward pass.
        model_signature: from a study's probe.
        median_norm: of the gradient at the start, L2, before clipping.
    """

    workload: str | None = None
    fingerprint: str | None = None
    optimizer: str | None = None
    num_parameters: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    model_signature: str | None = None
    median_norm: float | None = None

    @property
    def is_named(self) -> bool:
        """Whether a workload or a fingerprint is given."""
        return self.workload is not None or self.fingerprint is not None

    @property
    def is_described(self) -> bool:
        """Whether more is said of the training than its name."""
        return any(name not in ("workload", "fingerprint") for name in self.given())

    def given(self) -> dict[str, Any]:
        """What was given, by name.

        Example:
            >>> Asked(workload="my-net", learning_rate=0.1).given()
            {'workload': 'my-net', 'learning_rate': 0.1}
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


async def _asked(
    workload: Annotated[
        str | None, Query(max_length=255, pattern=PRINTABLE, description="Name of the workload.")
    ] = None,
    fingerprint: Annotated[
        str | None,
        Query(pattern="^[0-9a-f]{16}$", description="What is trained, from a study; enough by itself."),
    ] = None,
    optimizer: Annotated[
        str | None,
        Query(
            pattern="^[a-z0-9_]{1,100}$",
            description="Its class in lower case, such as sgd: asks for similar studies.",
        ),
    ] = None,
    num_parameters: Annotated[
        int | None, Query(ge=1, le=10**15, description="Trainable parameters of the model.")
    ] = None,
    learning_rate: Annotated[float | None, Query(gt=0, le=1e9, description="Base learning rate.")] = None,
    batch_size: Annotated[
        int | None, Query(ge=1, le=10**12, description="Examples of an optimizer step.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, Query(description="Of the forward pass.")
    ] = None,
    model_signature: Annotated[
        str | None, Query(pattern="^[0-9a-f]{16}$", description="Of the model, from a study's probe.")
    ] = None,
    median_norm: Annotated[
        float | None,
        Query(ge=1e-30, le=1e30, description="Median L2 norm of the gradient at the start, before clipping."),
    ] = None,
) -> Asked:
    return Asked(
        workload=workload,
        fingerprint=fingerprint,
        optimizer=optimizer,
        num_parameters=num_parameters,
        learning_rate=learning_rate,
        batch_size=batch_size,
        precision=precision,
        model_signature=model_signature,
        median_norm=median_norm,
    )


Question = Annotated[Asked, Depends(_asked)]


async def find(app: Services, tenant_id: str, asked: Asked) -> Found:
    """What is stored for a training, or for similar ones.

    A fingerprint's own answer goes first, then similar trainings, then the workload's newest. With a workload alone its
    newest is the answer.

    Args:
        app: of the request.
        tenant_id: whose recommendations.
        asked: what is known of the training.

    Returns:
        What was found, and how well it fits.

    Raises:
        InvalidRequestError: ``query_incomplete`` without ``workload``, ``fingerprint`` and ``optimizer``.
    """
    found = None
    if asked.is_named:
        found = await anyio.to_thread.run_sync(_find, app, tenant_id, asked, limiter=app.fast_reads)
    if (found is None or found.match != "exact") and asked.optimizer is not None:
        similar = await run_in_threadpool(_find_similar, app, tenant_id, asked, asked.optimizer)
        found = recommendations.better_of(found, similar)
    if found is None:
        raise InvalidRequestError(
            "the query names no workload, no fingerprint and no optimizer: give workload, or optimizer with what else "
            "is known of the training, to get what similar studies found",
            code="query_incomplete",
            errors=[{"detail": "is missing: give it, fingerprint or optimizer", "pointer": "query/workload"}],
        )
    if asked.optimizer is None and asked.is_described and found.match == "workload":
        return replace(found, reason=f"{found.reason}; similar studies are looked for only with optimizer")
    return found


def _find(app: Services, tenant_id: str, asked: Asked) -> Found:
    return app.database.glance(
        lambda connection: recommendations.find(
            connection,
            tenant_id=tenant_id,
            workload=asked.workload,
            fingerprint=asked.fingerprint,
            is_described=asked.is_described,
        )
    )


def _find_similar(app: Services, tenant_id: str, asked: Asked, optimizer: str) -> Found:
    subject = Subject(
        optimizer=optimizer,
        num_parameters=asked.num_parameters,
        learning_rate=asked.learning_rate,
        batch_size=asked.batch_size,
        precision=asked.precision,
        model_signature=asked.model_signature,
    )
    with app.database.read() as session:
        return recommendations.find_similar(
            session, tenant_id=tenant_id, asked=subject, median_norm=asked.median_norm
        )
