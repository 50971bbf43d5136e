"""Who gets a slot: priority first, then evenly over tenants and studies; nothing is left idle that somebody wants."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.worker.shares import Claim, fair_shares, next_study, num_excess


def claim(
    study: str, *, tenant: str = "t", priority: int = 0, arrived: int = 0, held: int = 0, wanted: int = 0
) -> Claim:
    return Claim(
        study_id=study, tenant_id=tenant, priority=priority, arrived=arrived, num_held=held, num_wanted=wanted
    )


CLAIMS = st.lists(
    st.builds(
        claim,
        study=st.just(""),
        tenant=st.sampled_from("tuv"),
        priority=st.integers(-1, 1),
        held=st.integers(0, 4),
        wanted=st.integers(0, 6),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda claims: [
        claim(
            str(number),
            tenant=each.tenant_id,
            priority=each.priority,
            arrived=number,
            held=each.num_held,
            wanted=each.num_wanted,
        )
        for number, each in enumerate(claims)
    ]
)


def test_priority_goes_before_an_even_share() -> None:
    urgent = claim("urgent", priority=1, held=3, wanted=1, arrived=2)
    assert next_study([claim("a", wanted=1), urgent]) == "urgent"
    assert fair_shares([claim("a", held=2, wanted=2), urgent], 4) == {"a": 0, "urgent": 4}


def test_a_tenant_with_many_studies_gets_no_more_than_one_with_one() -> None:
    many = [claim(f"a{number}", tenant="a", wanted=4, arrived=number) for number in range(3)]
    shares = fair_shares([*many, claim("b", tenant="b", wanted=4, arrived=9)], 6)
    assert shares == {"a0": 1, "a1": 1, "a2": 1, "b": 3}


def test_nobody_gives_up_a_slot_that_nobody_wants() -> None:
    assert num_excess([claim("a", held=4), claim("b", held=0)], 4, "a") == 0
    assert num_excess([claim("a", held=4), claim("b", wanted=1)], 4, "a") == 1


@settings(max_examples=60, deadline=None)
@given(claims=CLAIMS, num_slots=st.integers(0, 12))
def test_shares_use_every_slot_and_give_nobody_more_than_it_can_use(
    claims: list[Claim], num_slots: int
) -> None:
    shares = fair_shares(claims, num_slots)
    demand = {each.study_id: each.num_held + each.num_wanted for each in claims}
    assert all(0 <= shares[study] <= demand[study] for study in demand)
    assert sum(shares.values()) == min(num_slots, sum(demand.values()))
    for each in claims:
        for other in claims:
            if each.tenant_id == other.tenant_id and each.priority == other.priority:
                # One more for the other would need it to want one.
                assert (
                    shares[each.study_id] <= shares[other.study_id] + 1
                    or shares[other.study_id] == demand[other.study_id]
                )
            if each.priority > other.priority and shares[other.study_id]:
                assert shares[each.study_id] == demand[each.study_id]
