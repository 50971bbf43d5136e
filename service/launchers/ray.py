"""Have the nodes of a Ray cluster train: each training process is a driver that asks the cluster for a device.

The worker itself never imports Ray, because Ray ends the process of a driver whose cluster is gone. A `launch` gives an
ordinary `TrainingProcess`, whose program is `service.launchers.ray_driver`; it is given what it needs to attach, by
name, and neither the address of the database nor a key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import structlog

from service.errors import SettingsError
from service.launchers.launcher import AbstractLauncher
from service.launchers.process import TrainingProcess, absolute_paths
from service.launchers.ray_attach import (
    AttachError,
    ray_version,
    read_runtime_env,
    require_address,
    require_version,
)
from service.settings import Settings
from tuner.workloads.registrations import Registrations

_LOG = structlog.get_logger()
#: The program that asks the cluster, and what the nodes' Python runs.
DRIVER = (sys.executable, "-m", "service.launchers.ray_driver")
NODE_TRAINER = ("-m", "service.launchers.trainer")
#: Variables that a driver needs to attach; RAY_ADDRESS is not one, or it would win over the setting.
_RAY_VARIABLES = ("RAY_AUTH_MODE", "RAY_USE_TLS")
#: Those that name files.
_RAY_PATHS = (
    *("RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"),
    *("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"),
)
#: Ray tells nobody of its use, and tries twice to reach a head that refuses: a token that is wrong stays so.
_RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_NUM_REDIS_GET_RETRIES": "2"}


class RayLauncher(AbstractLauncher):
    """Starts trainings on a Ray cluster.

    Args:
        settings: address, what a training asks for, times, and what may attach.
        registrations: the workloads that may be imported on the nodes.
        program: what the nodes' Python runs, without the registrations.
        import_from: folders of the nodes from which modules may be imported.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registrations: Registrations,
        program: Sequence[str] = NODE_TRAINER,
        import_from: Sequence[str] = (),
    ) -> None:
        self.registrations = registrations
        self._settings = settings
        self._program = tuple(program)
        self._import_from = tuple(import_from)

    @classmethod
    def of(cls, settings: Settings) -> RayLauncher:
        """The launcher of an installation whose CLIPTUNE_LAUNCHER is ray.

        Args:
            settings: see `RayLauncher`.

        Returns:
            The launcher; nothing is attached to yet.

        Raises:
            AttachError: if Ray is not installed or too old, or the address or the runtime environment can't be used.
            SettingsError: if a training would ask for a fraction above one.
            SpecError: if two registrations have one name.
        """
        if find_spec("ray") is None:
            raise AttachError(
                "CLIPTUNE_LAUNCHER=ray needs the package ray: pip install 'cliptune[ray]'", code="ray_missing"
            )
        require_address(settings.ray_address)
        read_runtime_env(settings.ray_runtime_env)
        for name, amount in (("GPUS", settings.ray_gpus), ("CPUS", settings.ray_cpus)):
            if amount > 1 and not amount.is_integer():
                raise SettingsError(
                    f"CLIPTUNE_RAY_{name} is {amount:g}: Ray gives fractions of one only; write a whole number"
                )
        warning = require_version(ray_version(), allow_insecure=settings.ray_allow_insecure)
        if warning is not None:
            _LOG.warning(warning, action="ray_version")
        if settings.ray_allow_insecure:
            _LOG.warning(
                "Attaches to a Ray cluster without requiring token authentication: CLIPTUNE_RAY_ALLOW_INSECURE",
                action="ray_insecure",
                address=settings.ray_address,
            )
        return cls(settings, registrations=settings.registrations)

    def launch(self) -> TrainingProcess:
        """A new driver; it says `Ready`, of a device called ray, once it is attached to the cluster."""
        return self._launch_for(self.registrations)

    def _launch_for(self, registrations: Registrations) -> TrainingProcess:
        settings = self._settings
        listed = json.dumps(registrations.to_json(), separators=(",", ":"))
        # A driver works in a folder of its own.
        given = settings.ray_runtime_env
        runtime_env = str(Path(given).expanduser().absolute()) if given else ""
        command = (
            *DRIVER,
            *("--address", settings.ray_address, "--runtime-env", runtime_env),
            *("--cpus", str(settings.ray_cpus), "--gpus", str(settings.ray_gpus)),
            *("--allow-insecure",) * settings.ray_allow_insecure,
            *("--kill-grace-seconds", str(settings.kill_grace_seconds)),
            *("--program", json.dumps([*self._program, "--workloads", listed])),
            *("--import-from", json.dumps(self._import_from), "--also", json.dumps(settings.passed_on)),
        )
        return TrainingProcess(
            command,
            threads=settings.training_threads,
            kill_grace_seconds=settings.kill_grace_seconds,
            also=_RAY_VARIABLES,
            environment=_RAY_SETTINGS | absolute_paths(_RAY_PATHS),
            # Whatever ends a driver, it is not the workload, which runs elsewhere.
            cause="device_lost",
        )
