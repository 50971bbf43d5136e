"""What travels over HTTP: one class per body, shared by the API and the client.

Answers are frozen pydantic models; the evidence inside them is made of `tuner`'s own dataclasses, so a bound or
a word is defined once. The request that submits a study is `StudyRequest`, a `StudySpec` with a name. Times are
RFC 3339 in UTC. Importing this package loads neither a database nor a web library.
"""

from __future__ import annotations

from service.schemas.answers import TERMINAL_EVENTS as TERMINAL_EVENTS
from service.schemas.answers import BadgeOut as BadgeOut
from service.schemas.answers import EventOut as EventOut
from service.schemas.answers import FieldProblem as FieldProblem
from service.schemas.answers import Health as Health
from service.schemas.answers import MethodOut as MethodOut
from service.schemas.answers import Model as Model
from service.schemas.answers import NeighbourOut as NeighbourOut
from service.schemas.answers import Page as Page
from service.schemas.answers import Problem as Problem
from service.schemas.answers import Ready as Ready
from service.schemas.answers import RecommendationAnswer as RecommendationAnswer
from service.schemas.answers import RecommendationOut as RecommendationOut
from service.schemas.answers import SlotOut as SlotOut
from service.schemas.answers import StudyError as StudyError
from service.schemas.answers import StudyOut as StudyOut
from service.schemas.answers import TrialOut as TrialOut
from service.schemas.answers import Version as Version
from service.schemas.answers import WarmStart as WarmStart
from service.schemas.answers import WorkerOut as WorkerOut
from service.schemas.answers import WorkloadOut as WorkloadOut
from service.schemas.keys import DEFAULT_EXPIRY_DAYS as DEFAULT_EXPIRY_DAYS
from service.schemas.keys import MAX_EXPIRY_DAYS as MAX_EXPIRY_DAYS
from service.schemas.keys import KeyMade as KeyMade
from service.schemas.keys import KeyOut as KeyOut
from service.schemas.keys import KeyRequest as KeyRequest
from service.schemas.lanes import MAX_ERROR as MAX_ERROR
from service.schemas.lanes import MAX_NORMS as MAX_NORMS
from service.schemas.lanes import MAX_WAIT_SECONDS as MAX_WAIT_SECONDS
from service.schemas.lanes import AskRequest as AskRequest
from service.schemas.lanes import CompletedOut as CompletedOut
from service.schemas.lanes import CompleteRequest as CompleteRequest
from service.schemas.lanes import DirectiveOut as DirectiveOut
from service.schemas.lanes import HeartbeatRequest as HeartbeatRequest
from service.schemas.lanes import LeaseOut as LeaseOut
from service.schemas.lanes import ReportRequest as ReportRequest
from service.schemas.lanes import RunRecord as RunRecord
from service.schemas.lanes import WaitingOut as WaitingOut
from service.schemas.requests import MAX_NAME as MAX_NAME
from service.schemas.requests import ExtendRequest as ExtendRequest
from service.schemas.requests import StudyRequest as StudyRequest
from service.schemas.webhooks import SUBSCRIBABLE as SUBSCRIBABLE
from service.schemas.webhooks import DeliveryOut as DeliveryOut
from service.schemas.webhooks import DeliveryState as DeliveryState
from service.schemas.webhooks import Subscribable as Subscribable
from service.schemas.webhooks import WebhookEvent as WebhookEvent
from service.schemas.webhooks import WebhookOut as WebhookOut
from service.schemas.webhooks import WebhookRequest as WebhookRequest
from service.schemas.webhooks import WebhookSecretOut as WebhookSecretOut
