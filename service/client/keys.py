"""The access keys of a tenant, for a client whose own key has the scope ``admin``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from service.client.connection import Connection
from service.errors import NotFoundError
from service.schemas import DEFAULT_EXPIRY_DAYS, KeyMade, KeyOut
from service.scopes import Scope

#: An id, or a key with its id in it: a secret has no place in an address.
_KEY_ID = re.compile(r"(?:cliptune_live_)?([0-9A-Za-z]{8})(?:_\w+)?", re.ASCII)


class KeyCalls(Connection):
    """The addresses of access keys as methods of `service.client.Client`."""

    def iter_keys(self) -> Iterator[KeyOut]:
        """Every key of the tenant, newest first, a page at a time, those that ended among them."""
        return self._items(KeyOut, "/v1/keys")

    def create_key(
        self, label: str, scopes: Sequence[Scope], *, expires_in_days: int | None = DEFAULT_EXPIRY_DAYS
    ) -> KeyMade:
        """Make a key. It is sent once: a lost answer has made a key that nobody knows, which `iter_keys` shows.

        Args:
            label: what it is for, 1 to 100 printable characters.
            scopes: what it may do, at least one.
            expires_in_days: how long it lives, 1 to 3650; None for ever.

        Returns:
            The key, in `KeyMade.key` for the only time.

        Raises:
            ForbiddenError: if the client's own key lacks the scope ``admin``.
            InvalidRequestError: if a field is out of its bounds.
        """
        body = {"label": label, "scopes": list(scopes), "expires_in_days": expires_in_days}
        return self._call(KeyMade, "POST", "/v1/keys", json=body, repeatable=False)

    def revoke_key(self, key_id: str) -> KeyOut:
        """End a key; every process of the service refuses it within a minute.

        Args:
            key_id: its 8-character id, or the key itself, of which the id alone is sent.

        Returns:
            The key, revoked now or before.

        Raises:
            NotFoundError: ``key_not_found`` if the tenant has no such key.
            ConflictError: ``last_admin_key`` if it is the last live one with the scope ``admin``.
        """
        found = _KEY_ID.fullmatch(key_id)
        if found is None:
            raise NotFoundError(
                "there is no access key with this id: an id has 8 letters and digits, `cliptune keys list` shows them",
                code="key_not_found",
            )
        return self._call(KeyOut, "DELETE", f"/v1/keys/{found[1]}")
