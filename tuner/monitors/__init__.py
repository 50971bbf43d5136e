"""Where norms and losses are shown while a training runs: one small interface, three implementations.

Nothing here imports a monitor's package before one is opened. Gradient norms in figures are named ``pre_clip_norm`` or
``post_clip_norm``, never just norm.
"""

from __future__ import annotations

from tuner.monitors.base import MissingExtraError as MissingExtraError
from tuner.monitors.base import Monitor as Monitor
from tuner.monitors.base import MonitorError as MonitorError
from tuner.monitors.mlflow import MlflowMonitor as MlflowMonitor
from tuner.monitors.opening import open_monitor as open_monitor
from tuner.monitors.opening import parse_monitor as parse_monitor
from tuner.monitors.tensorboard import TensorBoardMonitor as TensorBoardMonitor
from tuner.monitors.wandb import WandbMonitor as WandbMonitor
