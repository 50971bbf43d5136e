"""Identity tokens of GitHub's runners: asked for when one is needed, and again before it expires.

A job with the permission ``id-token: write`` finds an address and a secret for it in its environment. The token that
this address answers says which repository and branch the job runs for; it is made for one audience, the service, and
holds for minutes, so that a command which waits for hours needs several.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable

import httpx2

from service.client.connection import is_sendable
from service.errors import UnavailableError
from service.trust import is_web_address

#: How long before its end a token is replaced, and how long one is used that does not say when it ends, in seconds.
_MARGIN_SECONDS = 60.0
_FETCH_SECONDS = 10.0
_MAX_CHARACTERS = 100_000


class IdTokenUnavailableError(UnavailableError):
    """GitHub's runner gives no identity token."""

    code = "id_token_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"GitHub gave no identity token ({reason}): give the job the permission id-token: write, or set "
            "CLIPTUNE_API_KEY"
        )


class GitHubIdentity:
    """Gives a token that is good now; called for each request.

    Args:
        request_url: ``ACTIONS_ID_TOKEN_REQUEST_URL``.
        request_token: ``ACTIONS_ID_TOKEN_REQUEST_TOKEN``.
        audience: the service's address, as the service's operator wrote it into the rule.
        clock: seconds that only rise; tests move it.

    Raises:
        IdTokenUnavailableError: if the address is none that a secret may be sent to, or the secret can't be sent.
    """

    def __init__(
        self,
        request_url: str,
        request_token: str,
        audience: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # The runner's address has a query already.
        if not is_web_address(request_url.partition("?")[0]):
            raise IdTokenUnavailableError("ACTIONS_ID_TOKEN_REQUEST_URL is no https address")
        if not is_sendable(request_token):
            raise IdTokenUnavailableError(
                "ACTIONS_ID_TOKEN_REQUEST_TOKEN has characters that no header can carry"
            )
        self._request_url = request_url
        self._request_token = request_token
        self._audience = audience
        self._clock = clock
        self._token = ""
        self._good_until = 0.0

    def __call__(self) -> str:
        """The token.

        Returns:
            The same one until a minute before its end.

        Raises:
            IdTokenUnavailableError: if there is none to be had.
        """
        if not self._token or self._clock() >= self._good_until:
            self._token = self._fetch()
            self._good_until = self._clock() + max(0.0, _lifetime(self._token) - _MARGIN_SECONDS)
        return self._token

    def _fetch(self) -> str:
        """A new token from the runner.

        Raises:
            IdTokenUnavailableError: if it gives none.
        """
        try:
            url = httpx2.URL(self._request_url).copy_merge_params({"audience": self._audience})
            headers = {"Authorization": f"Bearer {self._request_token}"}
            answer = httpx2.get(url, headers=headers, timeout=_FETCH_SECONDS)
        except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError, ValueError) as error:
            # The last three: a host that is no name, or proxies and certificates of the environment that can't be used.
            raise IdTokenUnavailableError(str(error) or type(error).__name__) from None
        if answer.status_code != httpx2.codes.OK:
            raise IdTokenUnavailableError(f"the runner answered {answer.status_code}")
        token = _token_in(answer.text)
        if token is None:
            raise IdTokenUnavailableError("the runner answered something else")
        return token


def _token_in(text: str) -> str | None:
    """The token in an answer of the runner, ``{"value": TOKEN}``; None if there is none that can be sent on."""
    try:
        found = json.loads(text)["value"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_token = isinstance(found, str) and is_sendable(found)
    return found if is_token and 1 <= len(found) <= _MAX_CHARACTERS else None


def _lifetime(token: str) -> float:
    """How long a token holds from when it was made, in seconds, by its own word; 0 if it does not say."""
    try:
        claims = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return float(found["exp"]) - float(found["iat"])
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return 0.0
