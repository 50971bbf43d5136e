"""What to train: the `Workload` interface, the built-in workloads and their registry."""

from tuner.workloads.base import AnyWorkload as AnyWorkload
from tuner.workloads.base import Workload as Workload
from tuner.workloads.base import parameter as parameter
from tuner.workloads.registry import WORKLOADS as WORKLOADS
from tuner.workloads.registry import create_workload as create_workload
from tuner.workloads.registry import describe_workloads as describe_workloads
from tuner.workloads.registry import get_workload as get_workload
