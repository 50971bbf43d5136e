"""Whom the operator trusts besides holders of a key: rules for the identity tokens of pipelines.

A rule names an issuer, the audience that its tokens are made for, and globs that claims of a token must match; it
says whose objects the bearer sees and with which scopes. Rules come from the setting ``CLIPTUNE_OIDC``, a JSON list,
and are checked when a process starts: a rule that would let in anybody who has an account with the issuer is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from service.scopes import DEFAULT_TENANT, Scope

#: Claims that say which repository a pipeline belongs to; a rule matches on one of them at least.
IDENTIFYING = ("repository", "project_path", "sub")
#: How a pattern begins that leaves the owner not open: OWNER/, as a subject repo:OWNER/ or project_path:GROUP/, or
#: elsewhere organization:OWNER: . Not any KIND:VALUE: , because on GitHub a stranger's repository may have subjects
#: that begin with its environment or its workflow.
_OWNER = re.compile(
    r"(repo:|project_path:)?[^/:]+/|(organization|repository_owner|repository_owner_id):[^/:]+:"
)
#: A pipeline is given no keys to make: one would outlive it.
_SCOPES: tuple[Scope, ...] = ("read", "write", "worker")
_FIELDS = ("issuer", "audience", "match", "tenant", "scopes")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAX_RULES = 100


@dataclass(frozen=True)
class TrustRule:
    """Whose identity tokens are taken, and what their bearers may do.

    Attributes:
        issuer: URL, exactly as the claim ``iss`` has it.
        audience: what the claim ``aud`` must hold.
        match: a glob for each claim that must match: ``*`` and ``?`` stand for any characters, ``/`` among them.
        tenant: whose objects the bearer sees.
        scopes: what the bearer may do.
    """

    issuer: str
    audience: str
    match: tuple[tuple[str, str], ...]
    tenant: str = DEFAULT_TENANT
    scopes: frozenset[str] = frozenset({"read"})

    def first_mismatch(self, claims: Mapping[str, Any]) -> tuple[str, str] | None:
        """The first claim that does not match, with its pattern; None if all of them do.

        Args:
            claims: of a token.

        Example:
            >>> rule = TrustRule("https://ci.example", "cliptune", (("repository", "octo/*"),))
            >>> rule.first_mismatch({"repository": "octo/models"}), rule.first_mismatch({"repository": "cat/models"})
            (None, ('repository', 'octo/*'))
        """
        for claim, pattern in self.match:
            value = claim_text(claims.get(claim))
            if value is None or not fnmatchcase(value, pattern):
                return claim, pattern
        return None


def claim_text(value: object) -> str | None:
    """A claim's value as the text that globs are compared with; None for what is no text, number or truth value.

    Example:
        >>> claim_text("main"), claim_text(12), claim_text(True), claim_text(["main"])
        ('main', '12', 'true', None)
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


def parse_trust(text: str) -> tuple[TrustRule, ...]:
    """The rules in the setting ``CLIPTUNE_OIDC``.

    Args:
        text: a JSON list of objects; empty is no rule.

    Returns:
        The rules in their order.

    Raises:
        ValueError: if the text is no such list, or a rule is incomplete, unknown, or trusts strangers.

    Example:
        >>> match = '{"repository": "octo/*", "ref": "refs/heads/main"}'
        >>> rule, = parse_trust('[{"issuer": "https://ci.example", "audience": "cliptune", "match": %s}]' % match)
        >>> rule.tenant, sorted(rule.scopes)
        ('default', ['read'])
    """
    if not text.strip():
        return ()
    try:
        rules = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON list of rules, and is no JSON: {error}") from None
    if not isinstance(rules, list) or not 1 <= len(rules) <= _MAX_RULES:
        raise ValueError(f"must be a JSON list of 1 to {_MAX_RULES} rules")
    return tuple(_rule(each, f"rule {number}") for number, each in enumerate(rules, 1))


def is_web_address(url: str) -> bool:
    """Whether a URL may be fetched for its keys: https, or http on this very machine, and nothing hidden in it.

    Example:
        >>> is_web_address("https://ci.example/a"), is_web_address("http://ci.example"), is_web_address("http://[::1]:8")
        (True, False, True)
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)


def without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`: two readers of one document must not see two values under one name.

    Args:
        pairs: its fields in their order.

    Returns:
        The object.

    Raises:
        ValueError: if a name comes twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found


def _rule(given: Any, where: str) -> TrustRule:
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a JSON object with the fields {', '.join(_FIELDS)}")
    if unknown := sorted(set(given) - set(_FIELDS)):
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}: a rule has {', '.join(_FIELDS)}")
    texts = {name: given.get(name, "") for name in ("issuer", "audience")}
    texts["tenant"] = given.get("tenant", DEFAULT_TENANT)
    for name, value in texts.items():
        if not isinstance(value, str) or not 1 <= len(value) <= 500 or not value.isprintable():
            raise ValueError(
                f"{where}: {name} must be a text of 1 to 500 printable characters, got {value!r}"
            )
    if not is_web_address(texts["issuer"]):
        raise ValueError(
            f"{where}: issuer must be an https URL without user, query and fragment, got {texts['issuer']!r}"
        )
    return TrustRule(match=_match(given.get("match"), where), scopes=_scopes(given, where), **texts)


def _scopes(given: dict[str, Any], where: str) -> frozenset[str]:
    scopes = given.get("scopes", ["read"])
    if not isinstance(scopes, list) or not scopes or not all(each in _SCOPES for each in scopes):
        raise ValueError(
            f"{where}: scopes must be a list of {', '.join(_SCOPES)}, got {scopes!r}; admin takes an access key"
        )
    return frozenset(scopes)


def _match(match: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(match, dict) or not match:
        raise ValueError(
            f"{where}: match must name at least one claim, or every pipeline of the issuer would be let in: "
            'give {"repository": "OWNER/NAME"} or {"project_path": "GROUP/NAME"}'
        )
    for claim, pattern in match.items():
        if not isinstance(pattern, str) or not pattern or not claim:
            raise ValueError(
                f"{where}: match.{claim} must be a glob of at least one character, got {pattern!r}"
            )
    if not any(_names_owner(match[claim]) for claim in IDENTIFYING if claim in match):
        raise ValueError(
            f"{where}: match must hold {' or '.join(IDENTIFYING)} with its owner written out, such as "
            f"'octo/*', or strangers would be let in; got {match!r}"
        )
    return tuple(match.items())


def _names_owner(pattern: str) -> bool:
    """Whether a pattern fixes whose repository it is: it has no wildcard, or none before the end of the owner's name.

    Example:
        >>> _names_owner("octo/*"), _names_owner("repo:octo/models:*"), _names_owner("octo*"), _names_owner("repo:*")
        (True, True, False, False)
    """
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return fixed == pattern or _OWNER.match(fixed) is not None
