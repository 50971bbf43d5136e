"""Bodies of webhooks: what a caller asks for, what the service shows of webhooks and of deliveries."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.schemas.answers import Model

#: Longest URL and longest description, in characters.
MAX_WEBHOOK_URL = 2000
_MAX_DESCRIPTION = 100


class WebhookEvent(StrEnum):
    """What a webhook can be told of. A closed list, with when."""

    STUDY_SUCCEEDED = "study.succeeded"
    """A study ended with a recommendation."""
    STUDY_FAILED = "study.failed"
    """A study gave up."""
    STUDY_CANCELLED = "study.cancelled"
    """A study ended on request."""
    RECOMMENDATION_CHANGED = "recommendation.changed"
    """The newest recommendation for what is trained has another verdict or setting than the one before, or is the
    first."""
    TEST = "webhook.test"
    """Somebody asked for a test; goes to that webhook alone, whatever it listens to."""


class DeliveryState(StrEnum):
    """Where an event stands on its way to one webhook."""

    PENDING = "pending"
    """It will be sent, or sent again."""
    DELIVERED = "delivered"
    """The receiver answered with a 2xx status."""
    FAILED = "failed"
    """The last attempt failed too."""


Subscribable = Literal["study.succeeded", "study.failed", "study.cancelled", "recommendation.changed"]
SUBSCRIBABLE: tuple[Subscribable, ...] = (
    "study.succeeded",
    "study.failed",
    "study.cancelled",
    "recommendation.changed",
)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must consist of printable characters; take out control characters")
    return text


class WebhookRequest(BaseModel):
    """The body of ``POST /v1/webhooks``.

    Attributes:
        url: where events are sent: https, a public host, a port that this server allows (443 or 8443).
        events: which ones: study.succeeded, study.failed, study.cancelled, recommendation.changed; null stands for all.
        description: for people, up to 100 characters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: Annotated[str, Field(min_length=1, max_length=MAX_WEBHOOK_URL)]
    events: Annotated[list[Subscribable], Field(min_length=1, max_length=len(SUBSCRIBABLE))] | None = None
    description: Annotated[str, Field(max_length=_MAX_DESCRIPTION), AfterValidator(_printable)] = ""


class WebhookOut(Model):
    """An address that is told of events.

    Attributes:
        id: identity of the webhook.
        url: where events are sent.
        description: for people.
        events: which ones.
        created_at: when it was made.
        num_secrets: secrets that sign at present; more than one while a rotation lasts.
        failing_since: when the first attempt failed since one succeeded; null if the last one succeeded.
        disabled_at: when it was switched off; null while it is on.
        disabled_reason: why.
    """

    id: str
    url: str
    description: str
    events: tuple[str, ...]
    created_at: datetime
    num_secrets: int
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None


class WebhookSecretOut(WebhookOut):
    """A webhook with its newest secret, which is shown this once.

    Attributes:
        secret: ``whsec_`` and base64; what receivers verify signatures with.
    """

    secret: str = Field(repr=False)


class DeliveryOut(Model):
    """An event on its way to a webhook.

    Attributes:
        id: the header ``webhook-id``; the same at every attempt.
        event: its type.
        state: ``pending``, ``delivered`` or ``failed``.
        attempt: attempts so far.
        created_at: when it happened.
        next_attempt_at: when it is sent next, at the earliest; null unless it is pending.
        delivered_at: when the receiver took it.
        last_status: HTTP status of the last answer; null if there was none.
        last_error: why the last attempt failed.
    """

    id: str
    event: str
    state: DeliveryState
    attempt: int
    created_at: datetime
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    last_status: int | None
    last_error: str | None
