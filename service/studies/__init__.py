"""Studies as the API and the worker share them: submitting, extending, listing, reading, rebuilding trials.

Every function that serves a caller takes the tenant and sees nothing else; an object of another tenant is as
absent as one that never was. A study has no state of its own: its job's state is its state.
"""

from __future__ import annotations

from service.studies.cursor import InvalidCursorError as InvalidCursorError
from service.studies.extend import extend as extend
from service.studies.idempotency import Claim as Claim
from service.studies.idempotency import forget_idempotency_keys as forget_idempotency_keys
from service.studies.read import LiveJob as LiveJob
from service.studies.read import cancel as cancel
from service.studies.read import get as get
from service.studies.read import get_state as get_state
from service.studies.read import list_events as list_events
from service.studies.read import list_page as list_page
from service.studies.read import live_job as live_job
from service.studies.stored import stored_spec as stored_spec
from service.studies.submit import Submitted as Submitted
from service.studies.submit import create as create
from service.studies.trials import list_trials as list_trials
from service.studies.trials import load_trials as load_trials
