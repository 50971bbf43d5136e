"""What stands in a badge's address instead of a key: a signature that opens this one badge.

A README can send no key, and a key never stands in an address. ``KEY_ID.SIGNATURE`` is HMAC-SHA256 under the key's own
signing key over the badge's question: it opens nothing else, needs no storage, and dies with its key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from service.errors import ForbiddenError
from service.keys import Principal, find_principal

_FORM = re.compile(r"([0-9A-Za-z]{8})\.([0-9A-Za-z_-]{43})")
_KEY_ID = re.compile(r"[0-9A-Za-z]{8}")
#: Set against what else the key signs, such as the cursors of pages.
_PURPOSE = b"badge\n"
#: Looked up and compared with where nothing fits, so that each wrong token costs the same; "-" is in no key's id.
_NOBODY = "--------"
_NOTHING = "A" * 43


def sign(principal: Principal, question: Mapping[str, Any]) -> str:
    """A token for one badge.

    Args:
        principal: whose recommendations it shows.
        question: all that the badge depends on, JSON values by name.

    Returns:
        The token, safe in an address.

    Raises:
        ForbiddenError: ``badge_needs_key`` if the caller has no stored key, so that nothing could check the token.
    """
    if not _KEY_ID.fullmatch(principal.key_id):
        raise ForbiddenError(
            f"a badge lives as long as the key that made it, and {principal.key_id} is no stored key: ask with an "
            "access key, `cliptune keys create --label badge --scope read` makes one",
            code="badge_needs_key",
        )
    return f"{principal.key_id}.{_signature(principal.signing_key, question)}"


def owner(session: Session, token: str, question: Mapping[str, Any]) -> Principal | None:
    """Whose badge a token opens.

    Args:
        session: any transaction.
        token: what stood in the address.
        question: the badge that is asked for.

    Returns:
        The principal; None, without saying why, if the token is not this badge's, or if its key has ended or may not
        read.
    """
    form = _FORM.fullmatch(token)
    key_id, given = form.groups() if form else (_NOBODY, _NOTHING)
    principal = find_principal(session, key_id)
    signing_key = bytes(32) if principal is None else principal.signing_key
    is_equal = hmac.compare_digest(_signature(signing_key, question), given)
    return principal if principal is not None and is_equal and principal.may("read") else None


def _signature(signing_key: bytes, question: Mapping[str, Any]) -> str:
    # Sorted pairs as JSON: no two questions give the same text.
    text = json.dumps(sorted(question.items()), separators=(",", ":"))
    digest = hmac.new(signing_key, _PURPOSE + text.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
