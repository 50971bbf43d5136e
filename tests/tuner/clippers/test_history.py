"""Rings and ordered rows, against NumPy on the last values."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.clippers.history import overwritten, percentile, pushed, replaced

#: Few different values, so that there are ties.
values = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=1, max_size=40)


@given(values=values, window=st.integers(1, 9), share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_percentile_of_the_last_values_equals_numpy(values: list[float], window: int, share: float) -> None:
    ring = ordered = torch.full((1, window), torch.inf, dtype=torch.float64)
    for count, value in enumerate(values):
        counts, new = torch.tensor([count]), torch.tensor([value], dtype=torch.float64)
        ordered = replaced(ordered, overwritten(ring, counts), new)
        ring = pushed(ring, counts, new)
        last = values[max(0, count + 1 - window) : count + 1]
        assert ordered[0, : len(last)].tolist() == sorted(last)
    found = percentile(ordered, torch.tensor([len(last)]), torch.tensor([share], dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), np.percentile(last, 100 * share), rtol=1e-12, atol=1e-12)


def test_lanes_may_have_different_numbers_of_values() -> None:
    ring = torch.zeros(2, 3)
    assert pushed(ring, torch.tensor([0, 5]), torch.tensor([1.0, 2.0])).tolist() == [[1, 0, 0], [0, 0, 2]]
