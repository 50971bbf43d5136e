"""What a worker trains on, as its operator writes it."""

from __future__ import annotations

import pytest

from service.devices import Device, found_devices, parse_devices, slot_names
from service.errors import SettingsError
from service.settings import load_settings


def test_devices_are_read_in_their_order() -> None:
    assert parse_devices("auto", threads=2) is None
    found = parse_devices("cuda:1, cpu ,cpu:8", threads=2)
    assert found == (Device("cuda", 1, 2), Device("cpu", None, 2), Device("cpu", None, 8))
    assert slot_names(found) == ("cuda:1", "cpu:0", "cpu:1")


@pytest.mark.parametrize("text", ["", "gpu", "cuda", "cuda:x", "cpu:-1", "cpu,,cpu", "cuda:0;cpu", "CUDA:0"])
def test_what_is_no_device_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(SettingsError, match=r"is no device; write auto, or cuda:0, cpu or cpu:4"):
        parse_devices(text, threads=1)


def test_setting_is_checked_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPTUNE_DEVICES", "gpu:0")
    with pytest.raises(SettingsError, match=r"CLIPTUNE_DEVICES='gpu:0': .*'gpu:0' is no device"):
        load_settings()


@pytest.mark.parametrize("name", ["CLIPTUNE_", "CLIPTUNE_DATABASE_URL", "A=B", "1A", "A-B"])
def test_training_code_never_sees_our_settings(name: str) -> None:
    with pytest.raises(SettingsError, match=r"CLIPTUNE_TRAINING_ENVIRONMENT"):
        load_settings({}, training_environment=f"AWS_,{name}")


def test_a_cuda_device_has_one_slot() -> None:
    with pytest.raises(SettingsError, match=r"cuda:0 is named twice"):
        parse_devices("cuda:0,cpu,cuda:0", threads=1)


def test_every_cuda_device_is_found_or_one_cpu() -> None:
    assert slot_names(found_devices("cuda", 3, threads=1)) == ("cuda:0", "cuda:1", "cuda:2")
    assert slot_names(found_devices("cpu", 1, threads=1)) == ("cpu",)


@pytest.mark.parametrize(
    ("device", "visible", "sees"),
    [
        (Device("cuda", 1, 1), None, "1"),
        (Device("cuda", 1, 1), "6,7", "7"),
        (Device("cuda", 0, 1), "MIG-1f3c, GPU-9", "MIG-1f3c"),
        (Device("cuda", 2, 1), "6,7", "-1"),
        (Device("cpu", None, 1), "6,7", ""),
    ],
)
def test_a_process_sees_its_device_alone(device: Device, visible: str | None, sees: str) -> None:
    assert device.environment(visible or "") == {"CUDA_VISIBLE_DEVICES": sees}
