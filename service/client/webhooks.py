"""The webhooks of a tenant, for a client whose key has the scope ``admin``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from service.client.connection import Connection
from service.schemas import DeliveryOut, WebhookOut, WebhookSecretOut


class WebhookCalls(Connection):
    """The addresses of webhooks as methods of `service.client.Client`."""

    def list_webhooks(self) -> list[WebhookOut]:
        """Every webhook of the tenant, oldest first."""
        return list(self._items(WebhookOut, "/v1/webhooks"))

    def create_webhook(
        self, url: str, events: Sequence[str] | None = None, *, description: str = ""
    ) -> WebhookSecretOut:
        """Have events sent to an address. A lost answer has made a webhook, which `list_webhooks` shows.

        Args:
            url: https, a public host, a port that the service allows.
            events: which ones; None stands for all.
            description: for people.

        Returns:
            The webhook with its secret, which is not shown again.

        Raises:
            InvalidRequestError: ``webhook_url_refused``, or another field is wrong.
            ConflictError: ``too_many_webhooks``.
        """
        body = {
            "url": url,
            "events": None if events is None else list(events),
            "description": description,
        }
        return self._call(WebhookSecretOut, "POST", "/v1/webhooks", json=body, repeatable=False)

    def get_webhook(self, webhook_id: str) -> WebhookOut:
        """A webhook.

        Args:
            webhook_id: its id.

        Returns:
            The webhook, without its secret.

        Raises:
            NotFoundError: ``webhook_not_found``.
        """
        return self._call(WebhookOut, "GET", _path(webhook_id))

    def delete_webhook(self, webhook_id: str) -> WebhookOut:
        """Delete a webhook, and what was on its way to it.

        Args:
            webhook_id: its id.

        Returns:
            What it was.

        Raises:
            NotFoundError: ``webhook_not_found``.
        """
        return self._call(WebhookOut, "DELETE", _path(webhook_id), repeatable=False)

    def rotate_webhook(self, webhook_id: str) -> WebhookSecretOut:
        """Give a webhook a new secret; the one before signs beside it for 24 hours.

        Args:
            webhook_id: its id.

        Returns:
            The webhook with its new secret, which is not shown again.

        Raises:
            NotFoundError: ``webhook_not_found``.
        """
        return self._call(WebhookSecretOut, "POST", _path(webhook_id, ":rotate"), repeatable=False)

    def test_webhook(self, webhook_id: str) -> DeliveryOut:
        """Queue an event that only says that it arrives.

        Args:
            webhook_id: its id.

        Returns:
            The event on its way.

        Raises:
            NotFoundError: ``webhook_not_found``.
        """
        return self._call(DeliveryOut, "POST", _path(webhook_id, ":test"), repeatable=False)

    def enable_webhook(self, webhook_id: str) -> WebhookOut:
        """Switch a webhook on again.

        Args:
            webhook_id: its id.

        Returns:
            The webhook.

        Raises:
            NotFoundError: ``webhook_not_found``.
        """
        return self._call(WebhookOut, "POST", _path(webhook_id, ":enable"))

    def iter_deliveries(self, webhook_id: str) -> Iterator[DeliveryOut]:
        """What was sent to a webhook and what will be, newest first, a page at a time."""
        return self._items(DeliveryOut, _path(webhook_id, "/deliveries"))


def _path(webhook_id: str, rest: str = "") -> str:
    return f"/v1/webhooks/{quote(webhook_id, safe='')}{rest}"
