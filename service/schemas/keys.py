"""Bodies of making, listing and revoking access keys. The key itself stands in one answer: to who made it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.schemas.answers import Model
from service.scopes import Scope

#: Longest label of a key, in characters.
MAX_LABEL = 100
#: How long a key lives if nobody says, and at most, in days.
DEFAULT_EXPIRY_DAYS = 90
MAX_EXPIRY_DAYS = 3650


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must consist of printable characters; take out control characters")
    return text


def _distinct(scopes: list[Scope]) -> list[Scope]:
    twice = [scope for scope in scopes if scopes.count(scope) > 1]
    if twice:
        raise ValueError(f"must name each scope once, got {twice[0]} twice")
    return scopes


class KeyRequest(BaseModel):
    """The body of ``POST /v1/keys``.

    Attributes:
        label: what the key is for, 1 to 100 printable characters.
        scopes: what it may do: ``read``, ``write``, ``worker``, ``admin``, each at most once and at least one.
        expires_in_days: how long it lives, 1 to 3650 days; null for a key that never expires.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    label: Annotated[str, Field(min_length=1, max_length=MAX_LABEL), AfterValidator(_printable)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4), AfterValidator(_distinct)]
    expires_in_days: Annotated[int, Field(ge=1, le=MAX_EXPIRY_DAYS)] | None = DEFAULT_EXPIRY_DAYS


class KeyOut(Model):
    """An access key, without anything of its secret.

    Attributes:
        id: 8 characters, which also stand in the key; it may be logged.
        label: what it is for.
        scopes: what it may do.
        created_at: when it was made.
        expires_at: when it ends by itself; null for never.
        last_used_at: to the minute; null if never.
        revoked_at: when it was revoked; null if it was not.
        state: ``live``, ``expired`` or ``revoked``.
    """

    id: str
    label: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    state: Literal["live", "expired", "revoked"]


class KeyMade(KeyOut):
    """A key that was just made.

    Attributes:
        key: the key itself, shown this once: the service keeps a hash of it.
    """

    key: str = Field(repr=False)
