"""Describes failure codes in words for customers. The codes are HydraCore's own: a provider's texts are never shown."""

from __future__ import annotations

#: By code. The documentation has the same list.
TEXTS = {
    "boot_timeout": "The server did not come up in time",
    "resource_unavailable": "The provider has no capacity for this server type at this location",
    "placement_error": "The provider could not place the server",
    "invalid_server_type": "The provider does not offer this server type here",
    "invalid_input": "The provider does not take the order; it may not offer this server type at this location",
    "resource_locked": "The provider has locked it; its support knows why",
    "resource_limit_exceeded": "The provider account has reached its limit",
    "unauthorized": "The provider refused our credentials",
    "forbidden": "The provider refused our credentials",
    "token_readonly": "The provider refused our credentials",
    "no_placement": "No placement is left to try",
    "no_address": "No network address is free",
    "server_vanished": "The server is gone from the provider",
    "server_failed": "The provider could not start the server",
    "attempt_unverified": "The agent did not answer where it should",
    "provider_unreachable": "The provider does not answer",
    "too_many_calls": "The provider takes its time",
    "took_too_long": "It takes longer than it should",
    "provider_not_configured": "The provider is not set up here",
    "server_still_there": "The provider still shows the server",
    "server_unaccounted": "A server of this instance that we have no record of is in the way",
    "server_name_taken": "A server that is not ours has the name of this one at the provider",
    "locked": "The provider is at work on the server and does not let go of it",
    "agent_refused": "The agent refuses it",
    "agent_failed": "The agent gave no good answer",
    "agent_timeout": "The agent did not answer in time",
    "internal_error": "Something is wrong on our side",
}


def describe(code: str) -> str:
    """`code` in words; an unknown code stands for itself."""
    return TEXTS.get(code, f"The provider answered {code}")
