"""The labels of our servers, and what they tell: whose a server is, and which intent of the log it was made for.

The number of an attempt does not tell that. A log that was restored counts the attempts of an instance anew, and asked for it
again with the same key it comes to the same id, name and number as the history that was lost, whose server may still run. So a
server bears its intent. One that bears none was made by a release that gave none, and its number has to do.
"""

from __future__ import annotations

from uuid import UUID

from events.state import Attempt, Instance
from workers.providers.base import Server

INSTALLATION, INSTANCE, ATTEMPT, INTENT = "hc-installation", "hc-instance", "hc-attempt", "hc-intent"

#: Hex digits of an intent: enough to tell it from all others, and of its token's hash, which is worth nothing, only a part.
INTENT_LENGTH = 16


def instance_labels(installation: str, instance_id: UUID) -> dict[str, str]:
    """The labels by which every server of an instance is found, whatever attempt made it."""
    return {INSTALLATION: installation, INSTANCE: str(instance_id)}


def server_labels(installation: str, instance_id: UUID, attempt: Attempt) -> dict[str, str]:
    """The labels of the server that is made for `attempt`."""
    assert attempt.enrol_token_hash is not None, "an intent has a token"
    own = {ATTEMPT: str(attempt.number), INTENT: _intent(attempt.enrol_token_hash)}
    return instance_labels(installation, instance_id) | own


def is_made_for(attempt: Attempt, server: Server) -> bool:
    """Whether `server`, of this instance, was made for this attempt."""
    intent = server.labels.get(INTENT)
    if intent is None:
        return server.labels.get(ATTEMPT) == str(attempt.number)
    return attempt.enrol_token_hash is not None and intent == _intent(attempt.enrol_token_hash)


def holds(attempt: Attempt, server: Server) -> bool:
    """Whether `server`, of this instance, is what the attempt has, or what it waits for."""
    is_its = is_made_for(attempt, server) if attempt.server_id is None else attempt.server_id == server.id
    return attempt.may_have_server and is_its


def is_accounted_for(state: Instance, server: Server) -> bool:
    """Whether `server`, of this instance, may have been made for anything that is in its history up to `state`."""
    attempt = state.attempt
    if attempt is not None and (attempt.server_id == server.id or is_made_for(attempt, server)):
        return True
    intent, number = server.labels.get(INTENT), server.labels.get(ATTEMPT, "")
    if intent is None:
        return not number.isdecimal() or int(number) <= (0 if attempt is None else attempt.number)
    return any(intent == _intent(past.enrol_token_hash) for past in state.past_attempts)


def _intent(enrol_token_hash: str) -> str:
    return enrol_token_hash[:INTENT_LENGTH]
