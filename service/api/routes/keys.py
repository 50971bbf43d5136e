"""Access keys of the caller's tenant: list, make and revoke them, for callers with the scope ``admin``.

Making a key takes no Idempotency-Key: what such a key replays is stored, and a secret is not. A request whose answer
was lost has made a key that nobody knows; it is in the list, and may be revoked.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from service.api.answers import answer, page_answer
from service.api.deps import Admin, App, JsonBody
from service.api.routes.studies import Cursor, Limit
from service.identity import tenant_keys
from service.schemas import KeyMade, KeyOut, KeyRequest, Page

router = APIRouter(tags=["keys"])

KeyId = Annotated[str, Path(max_length=100)]


@router.get("/v1/keys", response_model=Page[KeyOut])
def list_keys(
    app: App, principal: Admin, request: Request, limit: Limit = 20, cursor: Cursor = None
) -> Response:
    """The access keys of this key's tenant, newest first, those that ended among them; never a key itself."""
    with app.database.read() as session:
        page = tenant_keys.list_page(
            session,
            tenant_id=principal.tenant_id,
            signing_key=principal.signing_key,
            limit=limit,
            cursor=cursor,
        )
    return page_answer(request, page)


@router.post("/v1/keys", status_code=201, response_model=KeyMade, dependencies=[JsonBody])
def create_key(app: App, principal: Admin, body: KeyRequest) -> Response:
    """Make an access key for this key's tenant. The answer is the only place where the key can ever be read.

    It takes no Idempotency-Key, because an answer with a secret is not stored: a repeated request makes another key.
    """
    with app.database.write() as session:
        made = tenant_keys.make(session, tenant_id=principal.tenant_id, request=body)
    headers = {"Location": f"/v1/keys/{made.id}", "Cache-Control": "no-store"}
    return answer(made, status=201, headers=headers)


@router.get("/v1/keys/{key_id}", response_model=KeyOut)
def get_key(app: App, principal: Admin, key_id: KeyId) -> Response:
    """One access key of this key's tenant."""
    with app.database.read() as session:
        return answer(tenant_keys.get(session, tenant_id=principal.tenant_id, key_id=key_id))


@router.delete("/v1/keys/{key_id}", response_model=KeyOut)
def delete_key(app: App, principal: Admin, key_id: KeyId) -> Response:
    """Revoke an access key; every process refuses it within a minute. Again, it changes nothing.

    A key may revoke itself, but not the last live key with the scope admin.
    """
    with app.database.write() as session:
        revoked = tenant_keys.revoke(session, tenant_id=principal.tenant_id, key_id=key_id)
    app.keyring.forget(revoked.id)
    return answer(revoked)
