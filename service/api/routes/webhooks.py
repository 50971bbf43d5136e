"""Webhooks of the caller's tenant: make, list, delete, rotate, test and switch on again, for the scope ``admin``.

A webhook is made without an Idempotency-Key: its answer has a secret, and an answer with a secret is not stored. A
request whose answer was lost has made a webhook that is in the list; delete it, or rotate its secret.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from service.api.answers import answer, page_answer
from service.api.deps import Admin, App, JsonBody, require_uuid
from service.api.routes.studies import Cursor, Limit
from service.schemas import DeliveryOut, Page, WebhookOut, WebhookRequest, WebhookSecretOut
from service.studies.cursor import read_cursor, write_cursor
from service.webhooks import outbox, registry
from service.webhooks.target import Allowance, parse_target

router = APIRouter(tags=["webhooks"])

_NO_STORE = {"Cache-Control": "no-store"}


async def _webhook_id(webhook_id: Annotated[str, Path(max_length=100)]) -> str:
    return require_uuid(webhook_id, "webhook_not_found", "webhook")


async def _allowance(request: Request) -> Allowance:
    allowance: Allowance = request.app.state.webhook_allowance
    return allowance


WebhookId = Annotated[str, Depends(_webhook_id)]
Allowed = Annotated[Allowance, Depends(_allowance)]


@router.post("/v1/webhooks", status_code=201, response_model=WebhookSecretOut, dependencies=[JsonBody])
def create_webhook(app: App, principal: Admin, allowance: Allowed, body: WebhookRequest) -> Response:
    """Have events sent to an address. The answer is the only place where the secret can be read.

    The address is checked for its form here, and for where its host is each time something is sent.
    """
    parse_target(body.url, allowance)
    with app.database.write() as session:
        made = registry.create(
            session,
            tenant_id=principal.tenant_id,
            url=body.url,
            events=body.events,
            description=body.description,
        )
    return answer(made, status=201, headers=_NO_STORE | {"Location": f"/v1/webhooks/{made.id}"})


@router.get("/v1/webhooks", response_model=Page[WebhookOut])
def list_webhooks(app: App, principal: Admin) -> Response:
    """The webhooks of this key's tenant, oldest first: all on one page, for there are at most 20."""
    with app.database.read() as session:
        found = registry.list_all(session, tenant_id=principal.tenant_id)
    return answer(Page[WebhookOut](items=found))


@router.post("/v1/webhooks/{webhook_id}:rotate", response_model=WebhookSecretOut)
def rotate_webhook(app: App, principal: Admin, webhook_id: WebhookId) -> Response:
    """Give a webhook a new secret, shown in this answer alone. For 24 hours the one before signs beside it."""
    with app.database.write() as session:
        rotated = registry.rotate(session, tenant_id=principal.tenant_id, webhook_id=webhook_id)
    return answer(rotated, headers=_NO_STORE)


@router.post("/v1/webhooks/{webhook_id}:test", status_code=202, response_model=DeliveryOut)
def test_webhook(app: App, principal: Admin, webhook_id: WebhookId) -> Response:
    """Queue the event `webhook.test` for this webhook alone. While it is switched off, the event waits."""
    with app.database.write() as session:
        registry.get(session, tenant_id=principal.tenant_id, webhook_id=webhook_id)
        delivery_id = outbox.record_test(session, webhook_id)
        queued = registry.get_delivery(session, delivery_id)
    return answer(queued, status=202)


@router.post("/v1/webhooks/{webhook_id}:enable", response_model=WebhookOut)
def enable_webhook(app: App, principal: Admin, webhook_id: WebhookId) -> Response:
    """Switch a webhook on again. What was on its way when it was switched off is sent now."""
    with app.database.write() as session:
        enabled = registry.enable(session, tenant_id=principal.tenant_id, webhook_id=webhook_id)
    return answer(enabled)


@router.get("/v1/webhooks/{webhook_id}/deliveries", response_model=Page[DeliveryOut])
def list_deliveries(
    app: App,
    principal: Admin,
    request: Request,
    webhook_id: WebhookId,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """What was sent to a webhook in the last 30 days and what will be, newest first."""
    purpose = f"deliveries {webhook_id}"
    before = None if cursor is None else read_cursor(principal.signing_key, purpose, cursor)
    with app.database.read() as session:
        registry.get(session, tenant_id=principal.tenant_id, webhook_id=webhook_id)
        found, following = registry.list_deliveries(
            session, webhook_id=webhook_id, limit=limit, before=before
        )
    next_cursor = None if following is None else write_cursor(principal.signing_key, purpose, *following)
    return page_answer(request, Page[DeliveryOut](items=found, next_cursor=next_cursor))


@router.get("/v1/webhooks/{webhook_id}", response_model=WebhookOut)
def get_webhook(app: App, principal: Admin, webhook_id: WebhookId) -> Response:
    """One webhook of this key's tenant, without its secret."""
    with app.database.read() as session:
        return answer(registry.get(session, tenant_id=principal.tenant_id, webhook_id=webhook_id))


@router.delete("/v1/webhooks/{webhook_id}", response_model=WebhookOut)
def delete_webhook(app: App, principal: Admin, webhook_id: WebhookId) -> Response:
    """Delete a webhook, and what was on its way to it; answers what it was."""
    with app.database.write() as session:
        removed = registry.remove(session, tenant_id=principal.tenant_id, webhook_id=webhook_id)
    return answer(removed)
