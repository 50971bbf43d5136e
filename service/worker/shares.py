"""Which study gets a slot, and how many are its due: pure.

Higher priority goes first. Within a priority slots are spread evenly over tenants, then over a tenant's studies; who
wants fewer than its share leaves the rest to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a study holds and wants.

    Attributes:
        study_id: which.
        tenant_id: whose it is.
        priority: higher goes first.
        arrived: orders studies that are equal otherwise: the first is served first.
        num_held: slots that it has.
        num_wanted: further slots that it could use now.
    """

    study_id: str
    tenant_id: str
    priority: int
    arrived: int
    num_held: int = 0
    num_wanted: int = 0


def next_study(claims: Iterable[Claim]) -> str | None:
    """Who gets the next free slot.

    Args:
        claims: of all studies of a worker.

    Returns:
        A study that wants one; None if none does.

    Example:
        >>> held = Claim(study_id="a", tenant_id="t", priority=0, arrived=0, num_held=1, num_wanted=3)
        >>> next_study([held, Claim(study_id="b", tenant_id="t", priority=0, arrived=1, num_wanted=1)])
        'b'
    """
    known = tuple(claims)
    wanting = [each for each in known if each.num_wanted > 0]
    if not wanting:
        return None
    by_tenant: dict[str, int] = {}
    for each in known:
        by_tenant[each.tenant_id] = by_tenant.get(each.tenant_id, 0) + each.num_held
    return min(
        wanting, key=lambda each: (-each.priority, by_tenant[each.tenant_id], each.num_held, each.arrived)
    ).study_id


def fair_shares(claims: Sequence[Claim], num_slots: int) -> dict[str, int]:
    """How many slots each study would hold if all were given out anew.

    Args:
        claims: of all studies; each could use what it holds and what it wants.
        num_slots: slots that can be used.

    Returns:
        By study id.

    Example:
        >>> greedy = Claim(study_id="a", tenant_id="t", priority=0, arrived=0, num_held=4)
        >>> fair_shares([greedy, Claim(study_id="b", tenant_id="u", priority=0, arrived=1, num_wanted=9)], 4)
        {'a': 2, 'b': 2}
    """
    left = {
        each.study_id: replace(each, num_held=0, num_wanted=each.num_held + each.num_wanted)
        for each in claims
    }
    for _ in range(num_slots):
        chosen = next_study(left.values())
        if chosen is None:
            break
        claim = left[chosen]
        left[chosen] = replace(claim, num_held=claim.num_held + 1, num_wanted=claim.num_wanted - 1)
    return {each.study_id: each.num_held for each in left.values()}


def num_excess(claims: Sequence[Claim], num_slots: int, study_id: str) -> int:
    """How many slots a study holds beyond its share while others wait for them.

    Args:
        claims: of all studies.
        num_slots: slots that can be used.
        study_id: one of them.

    Returns:
        0 while nobody else wants a slot.
    """
    if not any(each.num_wanted > 0 for each in claims if each.study_id != study_id):
        return 0
    held = next(each.num_held for each in claims if each.study_id == study_id)
    return max(0, held - fair_shares(claims, num_slots)[study_id])
