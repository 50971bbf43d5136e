"""Lanes that external training processes lease: asking, telling, and what the study's worker makes of it.

A lane is one trial under one seed. The worker that drives an external study inserts the lanes of a cohort and reads
them back; whoever trains leases them over HTTP. The database's rows are the only truth between the two.
"""

from __future__ import annotations

from service.lanes.lane import Completion as Completion
from service.lanes.lane import Directive as Directive
from service.lanes.lane import LaneState as LaneState
from service.lanes.lane import LaneStatus as LaneStatus
from service.lanes.lane import Leased as Leased
from service.lanes.lane import Report as Report
from service.lanes.queue import LaneQueue as LaneQueue
from service.lanes.queue import Waiting as Waiting
from service.lanes.rows import ReapedLane as ReapedLane
from service.lanes.rows import close_lanes as close_lanes
from service.lanes.rows import insert_lanes as insert_lanes
from service.lanes.rows import load_lanes as load_lanes
from service.lanes.rows import reap_lanes as reap_lanes
from service.lanes.token import LeaseToken as LeaseToken
