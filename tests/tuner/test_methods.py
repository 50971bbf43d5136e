"""The table of methods is complete and consistent."""

from __future__ import annotations

import dataclasses

import pytest

from tuner.clippers import Clipper, create_lane_clipper
from tuner.errors import UnknownMethodError
from tuner.methods import METHODS, OFF, get_method


def test_every_method_has_a_clipper_and_a_sensible_range() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert isinstance(create_lane_clipper(name, [1.0]), Clipper)
        assert method.summary.endswith(".")
        assert method.has_threshold == (name != OFF) == (method.scale is not None)
        assert 0 < method.kappa_low <= method.kappa_high


def test_unknown_method_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownMethodError) as caught:
        get_method("agc")
    assert caught.value.known == tuple(sorted(METHODS))


def test_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        METHODS["new"] = METHODS[OFF]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS[OFF].name = "off"  # type: ignore[misc]
