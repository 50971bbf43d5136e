"""The workloads that can be trained: published by workers, read by the API.

The API loads no training code: a worker writes what it can train into a table when it starts, and a study is
checked against that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import WorkloadRow
from service.db.upsert import insert_into
from service.schemas import WorkloadOut
from tuner.errors import SpecError, UnknownWorkloadError
from tuner.parameters import ParameterField, ParameterValue, WorkloadDescription, resolve_parameters


def publish_workloads(session: Session, descriptions: Iterable[WorkloadDescription], now: int) -> None:
    """Register what a worker can train; the newest description of a name wins.

    Args:
        session: a `Database.write` transaction.
        descriptions: of all its workloads.
        now: milliseconds since 1970.
    """
    # In the order of their names: two workers that start together must not wait for each other in a circle.
    for each in sorted(descriptions, key=lambda one: one.name):
        described = {
            "description": each.description,
            "objective": each.objective,
            "parameters": [dataclasses.asdict(field) for field in each.parameters],
            "updated_at": now,
        }
        statement = insert_into(session, WorkloadRow).values(name=each.name, **described)
        session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=described))


def list_workloads(session: Session) -> list[WorkloadOut]:
    """Every workload, by name.

    Args:
        session: any transaction.

    Returns:
        Their descriptions, parameters as JSON Schema.
    """
    rows = session.scalars(select(WorkloadRow).order_by(WorkloadRow.name))
    return [
        WorkloadOut(
            name=each.name,
            description=each.description,
            objective=each.objective,
            parameters=each.to_schema(),
        )
        for each in map(_description, rows)
    ]


def resolve(session: Session, workload: str, given: Mapping[str, Any]) -> dict[str, ParameterValue]:
    """All parameters of a workload: the given ones checked, the others at their defaults.

    Args:
        session: any transaction.
        workload: its name.
        given: values by parameter name.

    Returns:
        One value per parameter.

    Raises:
        UnknownWorkloadError: if no worker has registered the name.
        SpecError: if a parameter is unknown or out of its bounds.
    """
    row = session.get(WorkloadRow, workload)
    if row is None:
        raise UnknownWorkloadError(workload, session.execute(select(WorkloadRow.name)).scalars())
    try:
        return resolve_parameters(_description(row).parameters, given)
    except OverflowError:
        raise SpecError("parameters", "hold a number that is too large; give one below 1e308") from None


def _description(row: WorkloadRow) -> WorkloadDescription:
    fields = (
        ParameterField(**each | {"choices": None if each["choices"] is None else tuple(each["choices"])})
        for each in row.parameters
    )
    return WorkloadDescription(
        name=row.name, description=row.description, objective=row.objective, parameters=tuple(fields)
    )
