"""The labels of our servers. They identify the instance of a server, and the `ServerIntended` event that it was created for.

An attempt's number alone does not identify that event. After the log was restored from a backup, a request that is repeated with the
same idempotency key leads to the same instance id, server name and attempt number as in the lost part of the history, whose server may
still run. So each server has a label with its intent. Servers of older releases lack that label; for these, the number has to do.
"""

from __future__ import annotations

from uuid import UUID

from events.state import Attempt, Instance
from workers.providers.base import Server

INSTALLATION, INSTANCE, ATTEMPT, INTENT = "hc-installation", "hc-instance", "hc-attempt", "hc-intent"

#: The hex digits in the label of an intent: a prefix of the hash of its enrol token, long enough to be unique. The hash is no secret.
INTENT_LENGTH = 16


def instance_labels(installation: str, instance_id: UUID) -> dict[str, str]:
    """The labels that all servers of an instance have, whichever attempt created them."""
    return {INSTALLATION: installation, INSTANCE: str(instance_id)}


def server_labels(installation: str, instance_id: UUID, attempt: Attempt) -> dict[str, str]:
    """The labels of the server that is created for `attempt`."""
    assert attempt.enrol_token_hash is not None, "an intent has a token"
    own = {ATTEMPT: str(attempt.number), INTENT: _intent(attempt.enrol_token_hash)}
    return instance_labels(installation, instance_id) | own


def is_made_for(attempt: Attempt, server: Server) -> bool:
    """Whether `server`, which is of this instance, was created for this attempt."""
    intent = server.labels.get(INTENT)
    if intent is None:
        return server.labels.get(ATTEMPT) == str(attempt.number)
    return attempt.enrol_token_hash is not None and intent == _intent(attempt.enrol_token_hash)


def has_server(attempt: Attempt, server: Server) -> bool:
    """Whether `server`, which is of this instance, is the server that the attempt has, or that it is about to record."""
    is_its = is_made_for(attempt, server) if attempt.server_id is None else attempt.server_id == server.id
    return attempt.may_have_server and is_its


def is_accounted_for(state: Instance, server: Server) -> bool:
    """Whether `server`, which is of this instance, may have been created for any attempt in the history up to `state`."""
    attempt = state.attempt
    if attempt is not None and (attempt.server_id == server.id or is_made_for(attempt, server)):
        return True
    intent, number = server.labels.get(INTENT), server.labels.get(ATTEMPT, "")
    if intent is None:
        return not number.isdecimal() or int(number) <= (0 if attempt is None else attempt.number)
    return any(intent == _intent(past.enrol_token_hash) for past in state.past_attempts)


def _intent(enrol_token_hash: str) -> str:
    return enrol_token_hash[:INTENT_LENGTH]
