"""MLflow: a tracking server, or a local SQLite file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, final

from tuner.monitors.base import MonitorError, import_extra

_EXPERIMENT = "cliptune"


@final
class MlflowMonitor:
    """One run of an experiment; neither the process's active run nor its tracking address is touched.

    Args:
        uri: where it is kept: ``http://HOST:PORT`` of a tracking server, or ``sqlite:///FILE``, which needs SQLAlchemy
            and Alembic (``cliptune[server]``) beside mlflow. MLflow 3.17 refuses ``file:`` folders unless
            MLFLOW_ALLOW_FILE_STORE=true.
        run: the run's name; None lets MLflow choose one.
        experiment: its name; made if it is missing.

    Raises:
        MissingExtraError: without the extra ``mlflow``, or without what ``sqlite:`` needs.
        MonitorError: if MLflow refuses the address.
    """

    def __init__(self, uri: str, *, run: str | None = None, experiment: str = _EXPERIMENT) -> None:
        package = import_extra("mlflow", extra="mlflow")
        if uri.startswith("sqlite:"):
            import_extra("sqlalchemy", extra="server")
            import_extra("alembic", extra="server")
        self._metric: Any = package.entities.Metric
        try:
            self._client: Any = package.MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
            self._run_id = self._client.create_run(experiment_id, run_name=run).info.run_id
        except package.MlflowException as error:
            raise MonitorError(f"mlflow:{uri}", f"is refused by MLflow: {error}") from error
        self._is_open = True

    def log(self, step: int, figures: Mapping[str, float]) -> None:  # noqa: D102
        now = int(time.time() * 1000)
        metrics = [self._metric(name, float(value), now, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:  # noqa: D102
        if self._is_open:
            self._client.set_terminated(self._run_id)
            self._is_open = False
