"""An issuer of identity tokens: its public keys, fetched from its own discovery document and kept for an hour.

A key id that is not among them makes it look again, at most once a minute, since issuers change their keys. While an
issuer is away its last keys go on counting for a day. Only the issuer's own origin is asked, over https, without
following redirects; answers are cut at a size and a time.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import structlog

from service.errors import UnavailableError
from service.identity.key_set import KeySet, PublicKey
from service.identity.token import untrusted
from service.trust import is_web_address

#: Times of keys and of looking for them, in seconds.
FRESH_SECONDS = 3600.0
STALE_SECONDS = 24 * 3600.0
LOOK_AGAIN_SECONDS = 60.0
RETRY_SECONDS = 5.0
#: Longest time of one answer, in seconds, and its largest size in bytes.
_FETCH_SECONDS = 5.0
_MAX_BYTES = 256 * 1024

_log = structlog.get_logger()


class Issuer:
    """One issuer's keys; safe to share between threads.

    Args:
        url: as the claim ``iss`` has it.
        clock: seconds that only rise; tests move it.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched_at = self._tried_at = -math.inf
        self._failure = ""

    def find_key(self, key_id: str, algorithm: str) -> PublicKey:
        """The key that a token is to be verified with.

        Args:
            key_id: what the token says.
            algorithm: likewise.

        Returns:
            The key.

        Raises:
            UnauthorizedError: ``token_untrusted`` if the issuer has no such key.
            UnavailableError: ``token_unverifiable`` if its keys can't be had, if two have this id, or if none has but
                the issuer did not answer when it was asked again.
        """
        if self._is_due(key_id, algorithm):
            with self._lock:
                # Another thread may have fetched them while this one waited.
                if self._is_due(key_id, algorithm):
                    self._refresh()
        if self._keys is None or self._clock() - self._fetched_at > STALE_SECONDS:
            raise self._unverifiable(self._failure)
        found = self._keys.find(key_id, algorithm)
        if len(found) > 1:
            raise self._unverifiable(f"it lists {len(found)} keys under the id {key_id!a}")
        if not found and self._failure:
            # It may have changed its keys while it could not be asked.
            raise self._unverifiable(self._failure)
        if not found:
            untrusted(
                f"names the key {key_id!a}, which {self.url} does not list for {algorithm}: get a new token"
            )
        return found[0]

    def _is_due(self, key_id: str, algorithm: str) -> bool:
        since_try = self._clock() - self._tried_at
        if self._keys is None:
            return since_try >= RETRY_SECONDS
        is_known = bool(self._keys.find(key_id, algorithm))
        is_fresh = self._clock() - self._fetched_at < FRESH_SECONDS
        return since_try >= LOOK_AGAIN_SECONDS and not (is_known and is_fresh)

    def _refresh(self) -> None:
        try:
            self._keys = KeySet(_fetch(self._key_address()))
            self._fetched_at = self._clock()
            self._failure = ""
        except (
            httpx2.HTTPError,
            httpx2.InvalidURL,
            ImportError,
            OSError,
            ValueError,
            RecursionError,
        ) as error:
            self._failure = str(error) or type(error).__name__
            _log.warning(
                "an issuer's keys could not be fetched",
                action="identity_keys_missing",
                issuer=self.url,
                error=self._failure,
            )
        # Counted from the end, so that an issuer that answers slowly is not asked without a pause.
        self._tried_at = self._clock()

    def _key_address(self) -> str:
        """Where the keys are, from the discovery document.

        Raises:
            ValueError: if the document is another issuer's, or points elsewhere.
        """
        document = _fetch(f"{self.url.rstrip('/')}/.well-known/openid-configuration")
        if not isinstance(document, dict) or document.get("issuer") != self.url:
            raise ValueError("its discovery document does not name it as the issuer")
        address = document.get("jwks_uri")
        if (
            not isinstance(address, str)
            or not is_web_address(address)
            or _origin(address) != _origin(self.url)
        ):
            raise ValueError(f"its jwks_uri must be at {_origin(self.url)}, got {str(address)[:200]!a}")
        return address

    def _unverifiable(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"the identity token can't be verified, because the keys of {self.url} can't be had ({reason}): try again "
            "later, or use an access key",
            code="token_unverifiable",
            headers={"Retry-After": f"{RETRY_SECONDS:.0f}"},
        )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _fetch(url: str) -> Any:
    """The JSON at an address.

    Raises:
        ValueError: if the answer is no JSON, has another status than 200, is too large or takes too long.
    """
    deadline = time.monotonic() + _FETCH_SECONDS
    body = bytearray()
    # As it is on the wire: a compressed answer could be far larger than what was counted.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    with (
        httpx2.Client(timeout=_FETCH_SECONDS, headers=headers) as http,
        http.stream("GET", url) as response,
    ):
        if response.status_code != httpx2.codes.OK:
            raise ValueError(f"{url} answered {response.status_code}")
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > _MAX_BYTES:
                raise ValueError(f"{url} answered more than {_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise ValueError(f"{url} took more than {_FETCH_SECONDS:g} s")
    try:
        return json.loads(bytes(body))
    except ValueError:
        raise ValueError(f"{url} answered with something that is no JSON") from None
