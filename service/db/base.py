"""What every table's class derives from: shared metadata, names for constraints, columns for Python's types."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Float, MetaData, String
from sqlalchemy.orm import DeclarativeBase

PREFIX = "cliptune_"


class Base(DeclarativeBase):
    """Shared metadata, with names for every constraint so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger(),
        str: String(255),
        float: Float(),
        bool: Boolean(create_constraint=False),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
    }
