"""Authenticates the identity tokens of pipelines, as `service.keys.Keyring` does access keys.

A token is read, its issuer's rules are found, its signature is verified with the issuer's keys, then its times and
claims are judged. A good one is remembered for half a minute at most and never beyond its expiry.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from service.db.clock import database_now
from service.db.session import Database
from service.identity.claims import choose_rule, require_current
from service.identity.token import Token, read_token, shown, untrusted
from service.keys import Principal
from service.trust import TrustRule

if TYPE_CHECKING:
    from service.identity.issuer import Issuer

#: What the id of a token's bearer begins with, where a key's has its own letters.
IDENTITY = "oidc:"
_CACHE_SECONDS = 30.0
_MAX_CACHED = 10_000

_log = structlog.get_logger()


class Identities:
    """Whom identity tokens belong to; see the module.

    Args:
        database: whose clock decides whether a token holds.
        rules: of the operator; with none, every token is refused.

    Raises:
        ModuleNotFoundError: with rules and without the extra ``oidc``.
    """

    def __init__(self, database: Database, rules: Sequence[TrustRule]) -> None:
        self._database = database
        self._rules = tuple(rules)
        self._issuers: dict[str, Issuer] = {}
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[float, Principal]] = {}
        if rules:
            from service.identity.issuer import Issuer

            self._issuers = {rule.issuer: Issuer(rule.issuer) for rule in rules}

    def recall(self, text: str) -> Principal | None:
        """The bearer of a token seen a moment ago.

        Args:
            text: what the caller sent.

        Returns:
            The principal, or None: then `look_up`, in a thread.
        """
        found = self._known.get(_digest(text))
        return None if found is None or found[0] < time.monotonic() else found[1]

    def look_up(self, text: str) -> Principal:
        """Verify a token; this may ask its issuer for keys, and so take seconds.

        Args:
            text: what the caller sent.

        Returns:
            The principal of the rule that it matches.

        Raises:
            UnauthorizedError: ``token_malformed``, ``token_untrusted`` or ``token_expired``.
            UnavailableError: ``token_unverifiable``.
        """
        token = read_token(text)
        rules = self._rules_for(token)
        from service.identity.key_set import require_signature

        require_signature(token, self._issuers[token.issuer].find_key(token.key_id, token.algorithm))
        with self._database.read() as session:
            now = database_now(session) / 1000
        expires_at = require_current(token.claims, now)
        principal = _principal(token, choose_rule(token.claims, rules))
        _log.info(
            "an identity token was taken",
            action="identity_accepted",
            key_id=principal.key_id,
            tenant_id=principal.tenant_id,
            issuer=token.issuer,
            subject=shown(token.claims.get("sub")),
        )
        self._remember(text, principal, min(_CACHE_SECONDS, expires_at - now))
        return principal

    def _rules_for(self, token: Token) -> list[TrustRule]:
        """The rules of a token's issuer.

        Raises:
            UnauthorizedError: ``token_untrusted`` if there is none.
        """
        if not self._rules:
            untrusted(
                "can't be taken, because this service trusts no issuer: use an access key, or have the operator set "
                "CLIPTUNE_OIDC"
            )
        rules = [rule for rule in self._rules if rule.issuer == token.issuer]
        if not rules:
            untrusted(
                f"has the issuer {shown(token.issuer)}, which no rule of this service names: have the operator add it "
                "to CLIPTUNE_OIDC"
            )
        return rules

    def _remember(self, text: str, principal: Principal, seconds: float) -> None:
        with self._lock:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[_digest(text)] = (time.monotonic() + seconds, principal)


def _principal(token: Token, rule: TrustRule) -> Principal:
    """Who is calling: the same id for each token of one subject, so that logs of its jobs can be joined."""
    subject = f"{token.issuer}\n{token.claims.get('sub')}"
    return Principal(
        key_id=f"{IDENTITY}{hashlib.sha256(subject.encode('utf-8', 'replace')).hexdigest()[:12]}",
        tenant_id=rule.tenant,
        scopes=rule.scopes,
        # Known to the bearer and to us alone, and the same on every replica.
        signing_key=hashlib.sha256(b"cursor:" + token.text.encode()).digest(),
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
