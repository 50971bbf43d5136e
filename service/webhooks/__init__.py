"""Signed webhooks: events written beside what happened, sent later, at least once.

Nothing is re-exported here: a receiver imports `service.webhooks.signature`, which needs the standard library alone.
"""
