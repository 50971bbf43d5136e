"""Order statistics: known quantiles, and Hill's estimate on tails of known weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.evidence import NormSketch
from tuner.records import MAX_BINS, NormHistogram
from tuner.training.sketches import histograms, rank, sketch, tail_indices

NAN, INF = float("nan"), float("inf")


def tail_index(values: torch.Tensor) -> float | None:
    (found,) = tail_indices(*rank(values[None]))
    return found


def test_sketch_leaves_out_what_is_not_finite() -> None:
    found = sketch(torch.tensor([NAN, 1.0, INF]))
    assert found == NormSketch(
        q01=1.0, q10=1.0, median=1.0, q90=1.0, q99=1.0, max=1.0, min=1.0, log_mean=0.0, log_std=0.0
    )
    assert sketch(torch.tensor([NAN])) is None
    assert sketch(torch.tensor([])) is None


def test_sketch_of_a_sample_has_the_maximum_it_is_told() -> None:
    found = sketch(torch.tensor([1.0, 2.0, 3.0]), largest=9.0)
    assert found is not None
    assert (found.min, found.median, found.max) == (1.0, 2.0, 9.0)


def test_quantiles_are_torchs() -> None:
    values = torch.rand(37)
    found = sketch(values)
    assert found is not None
    wanted = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    exact = torch.quantile(values.double(), wanted).tolist()
    assert [found.q01, found.q10, found.median, found.q90, found.q99] == pytest.approx(exact, rel=1e-12)


def test_logarithms_are_of_the_values_above_zero() -> None:
    found = sketch(torch.tensor([0.0, 1.0, torch.e**2], dtype=torch.float64))
    assert found is not None
    assert (found.log_mean, found.log_std) == (pytest.approx(1.0), pytest.approx(1.0))


@pytest.mark.parametrize("exponent", [1.0, 1.5, 3.0, 6.0])
def test_hill_finds_the_exponent_of_a_pareto_tail(exponent: float) -> None:
    uniform = torch.rand(8000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert tail_index(uniform ** (-1 / exponent)) == pytest.approx(exponent, rel=0.15)


def test_hill_by_hand() -> None:
    # 90 ones and ten values e: k = 10, x(11) = 1, every excess is 1.
    assert tail_index(torch.tensor([1.0] * 90 + [torch.e] * 10, dtype=torch.float64)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "values",
    [
        [2.0 + index for index in range(99)],
        [3.0] * 200,
        [0.0] * 95 + [1.0] * 5,
        [NAN] * 150 + [1.0, 2.0] * 49,
    ],
    ids=["fewer than 100", "all equal", "begins at zero", "fewer than 100 are finite"],
)
def test_hill_says_nothing_of_what_is_no_tail(values: list[float]) -> None:
    assert tail_index(torch.tensor(values)) is None


def test_scale_does_not_change_the_tail() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(2)) + 0.5
    assert tail_index(values * 1024) == pytest.approx(tail_index(values), rel=1e-12)


def histogram(values: torch.Tensor) -> NormHistogram | None:
    (found,) = histograms(rank(values[None])[0])
    return found


#: What a norm can be: any float32 from 0 on, and what is left out.
VALUES = st.lists(
    st.floats(min_value=0, width=32, allow_infinity=True) | st.just(NAN) | st.floats(0.5, 2.0, width=32),
    max_size=60,
)


def test_a_histogram_counts_from_edge_to_edge() -> None:
    # Five octaves in 40 bins: eight per octave.
    found = histogram(torch.tensor([1.0, 1.05, 2.0, 2.1, 31.9, 0.0, NAN, INF]))
    assert found is not None
    assert (found.low, found.high, found.num_zero, len(found.counts)) == (1.0, 32.0, 1, 40)
    assert {index: count for index, count in enumerate(found.counts) if count} == {0: 2, 8: 2, 39: 1}
    assert found.edges[8] == 2.0


def test_equal_norms_are_one_bin_of_the_finest_grid() -> None:
    found = histogram(torch.full((7,), 3.0))
    assert found is not None and found.counts == (7,)
    assert found.low <= 3.0 < found.high == pytest.approx(found.low * 2 ** (1 / 32))


def test_no_norm_above_zero_is_no_histogram() -> None:
    assert histogram(torch.tensor([0.0, NAN])) is None
    assert histogram(torch.tensor([])) is None


@settings(max_examples=200, deadline=None)
@given(values=VALUES)
def test_a_histogram_holds_every_finite_norm_where_it_is(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    finite = tensor[tensor.isfinite()].double()
    found = histogram(tensor)
    if found is None:
        assert not (finite > 0).any()
        return
    assert sum(found.counts) + found.num_zero == len(finite)
    assert found.num_zero == int((finite == 0).sum())
    assert 1 <= len(found.counts) <= MAX_BINS and found.counts[0] and found.counts[-1]
    for index, count in enumerate(found.counts):
        low, high = found.edges[index] * (1 - 1e-12), found.edges[index + 1] * (1 + 1e-12)
        assert int(((finite >= low) & (finite < high)).sum()) >= count


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(VALUES, min_size=1, max_size=4))
def test_histograms_add_up_to_that_of_all_the_norms(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    whole = histogram(torch.cat(tensors))
    found = NormHistogram.merged(each for tensor in tensors if (each := histogram(tensor)) is not None)
    if whole is None or found is None:
        assert whole is found
        return
    assert (found.low, found.high, found.counts) == (whole.low, whole.high, whole.counts)
    # A part without a norm above 0 has no histogram to count its zeros.
    assert found.num_zero <= whole.num_zero


def test_nothing_adds_up_to_nothing() -> None:
    assert NormHistogram.merged([]) is None
