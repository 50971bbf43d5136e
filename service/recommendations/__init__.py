"""Recommendations: stored once by the worker that found them, read by anyone who asks, carried over to similar runs.

The exact query is one indexed read (`answers`). Only where it finds no exact match does a caller who says what is
trained get answers of similar studies (`similar`), by a distance (`distance`) and through kappa (`carrying`); a new
study's search begins with them (`warm`).
"""

from __future__ import annotations

from service.recommendations.answers import Found as Found
from service.recommendations.answers import better_of as better_of
from service.recommendations.answers import find as find
from service.recommendations.answers import find_of_study as find_of_study
from service.recommendations.answers import get as get
from service.recommendations.answers import store as store
from service.recommendations.distance import Subject as Subject
from service.recommendations.fingerprint import study_fingerprint as study_fingerprint
from service.recommendations.similar import find_similar as find_similar
from service.recommendations.warm import warm_start as warm_start
