"""Norms of rows, tensors and output units, against the tensors in their own shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.lanes import Layout
from tuner.norms import l2_norm, max_abs, tensor_norms, unit_norms, unit_of_column, units_of

LAYOUT = Layout(("filters", "weight", "bias", "gain"), ((3, 2, 2, 2), (4, 5), (4,), ()))


def matrix() -> Tensor:
    return torch.randn(2, LAYOUT.num_parameters, generator=torch.Generator().manual_seed(0))


def test_unit_is_an_index_of_the_first_axis_and_a_vector_is_one_unit() -> None:
    views = LAYOUT.views(matrix())
    expected = [
        views["filters"].flatten(2).norm(dim=2),
        views["weight"].norm(dim=2),
        views["bias"].norm(dim=1, keepdim=True),
        views["gain"].abs().unsqueeze(1),
    ]
    torch.testing.assert_close(unit_norms(matrix(), LAYOUT), torch.cat(expected, dim=1))
    assert units_of(LAYOUT) == (3, 4, 1, 1)


def test_every_column_has_the_unit_that_its_norm_is_of() -> None:
    ones = torch.ones(1, LAYOUT.num_parameters)
    columns = unit_of_column(LAYOUT).bincount()
    torch.testing.assert_close(unit_norms(ones, LAYOUT)[0].square(), columns.float())
    assert len(unit_of_column(LAYOUT)) == LAYOUT.num_parameters


def test_norm_of_the_whole_is_the_norm_of_the_parts() -> None:
    rows = matrix()
    torch.testing.assert_close(l2_norm(tensor_norms(rows, LAYOUT)), l2_norm(rows))
    torch.testing.assert_close(l2_norm(unit_norms(rows, LAYOUT)), l2_norm(rows))


def test_bad_element_spoils_the_norms_of_its_own_lane_only() -> None:
    rows = matrix()
    rows[1, 0] = torch.nan
    for norms in (l2_norm(rows), max_abs(rows)):
        assert norms.isfinite().tolist() == [True, False]
    assert tensor_norms(rows, LAYOUT).isfinite().tolist() == [[True] * 4, [False, True, True, True]]
