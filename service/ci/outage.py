"""Why the service gave no recommendation: each way has its own sentence, and none of them is about the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import ProblemError, ServiceError

#: What a code means for a pipeline, and what to do; the service's own words follow.
_KNOWN: Mapping[str, tuple[str, str]] = {
    "service_unreachable": ("The service can't be reached", "run the pipeline again once it can"),
    "unexpected_response": (
        "Something else answers at the service's address",
        "check the address and proxies",
    ),
    "key_missing": ("No access key was given", "set CLIPTUNE_API_KEY as a secret of the pipeline"),
    "key_malformed": ("The access key is mistyped", "copy it whole into the pipeline's secret"),
    "key_unknown": ("The access key is wrong", "set the pipeline's secret to a key of this service"),
    "key_expired": ("The access key has expired", "make a new one and replace the pipeline's secret"),
    "key_revoked": ("The access key was revoked", "make a new one and replace the pipeline's secret"),
    "token_malformed": ("The identity token is mistyped", "pass it on as the pipeline gave it"),
    "token_expired": ("The identity token has expired", "run the job again, which gets a new one"),
    "token_untrusted": ("The service does not trust the identity token", "compare it with the rules there"),
    "token_unverifiable": ("The service can't verify the identity token", "run the pipeline again later"),
    "id_token_unavailable": ("GitHub gave no identity token", "look at the job's permissions"),
    "forbidden": ("The access key lacks a scope", "use a key that may do this"),
}
_TOO_MANY, _BROKEN = 429, 500
#: Statuses of a refused key whose code is newer than this list.
_REFUSED = (401, 403)


@dataclass(frozen=True)
class Outage:
    """The service did not answer, or refused to.

    Attributes:
        code: stable, the service's own.
        title: what happened in a few words.
        sentence: what happened, the service's words, and what to do.
    """

    code: str
    title: str
    sentence: str


def outage(error: ServiceError) -> Outage | None:
    """Read what talking to the service raised.

    Args:
        error: from `service.client`.

    Returns:
        The outage; None for an error that is none: a wrong question, or something that is not there.

    Example:
        >>> from service.errors import UnauthorizedError
        >>> outage(UnauthorizedError("the access key ab has expired", code="key_expired")).title
        'The access key has expired'
    """
    status = error.status if isinstance(error, ProblemError) else None
    known = _KNOWN.get(error.code)
    if known is None and status == _TOO_MANY:
        known = "The service has taken too many requests from this key", "run the pipeline again later"
    if known is None and status is not None and status >= _BROKEN:
        known = f"The service is in trouble (HTTP {status})", "run the pipeline again later"
    if known is None and status in _REFUSED:
        known = f"The service refuses the access key (HTTP {status})", "check the pipeline's secret"
    if known is None:
        return None
    title, remedy = known
    return Outage(
        code=error.code,
        title=title,
        sentence=f"{title}, so that no clip value was judged: {remedy}. It said: {error}",
    )
