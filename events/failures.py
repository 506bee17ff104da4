"""Describes failure codes in words for customers. The codes are HydraCore's own: a provider's texts are never shown."""

from __future__ import annotations

#: By code. The documentation has the same list. `provision_log` stores these texts, so a changed text needs a new
#: version of that projection; the text of a new code that no log has yet does not.
TEXTS = {
    "boot_timeout": "The server or its agent did not start within the time limit",
    "resource_unavailable": "The provider has no capacity for this server type at this location",
    "placement_error": "The provider found no host for the server at this location",
    "invalid_server_type": "The provider does not offer this server type at this location",
    "invalid_input": "The provider rejected the order as invalid; it may not offer this server type at this location",
    "resource_locked": "The provider has locked the server or the account; an operator has to contact its support",
    "resource_limit_exceeded": "The provider account has reached a limit, such as its number of servers; an operator has to raise it",
    "unauthorized": "The provider does not accept HydraCore's API token; an operator has to replace it",
    "forbidden": "HydraCore's API token lacks a permission at the provider; an operator has to grant it",
    "token_readonly": "HydraCore's API token for the provider is read-only; an operator has to replace it",
    "protected": "The server is protected at the provider; an operator has to remove the protection",
    "no_placement": "HydraCore's catalogue has no server type and location for this region and tier",
    "no_address": "No VPN address is free in this region",
    "server_vanished": "The server no longer exists at the provider",
    "server_failed": "The provider could not start the server",
    "attempt_unverified": "The agent has started, but did not pass HydraCore's check at its VPN address",
    "provider_unreachable": "The provider's API does not answer",
    "not_connected": "HydraCore cannot connect to the provider's API",
    "no_answer_in_time": "The provider's API did not answer in time",
    "connection_broke": "The connection to the provider's API was lost before it had answered",
    "unreadable_answer": "The provider's API gave an answer that HydraCore cannot read",
    "unreadable_code": "The provider's API answered with an error code that HydraCore cannot read",
    "rate_limit_exceeded": "HydraCore has reached the provider's limit of API requests",
    "too_many_calls": "The provider's API has not answered earlier calls yet",
    "too_many_servers": "The provider lists more servers than HydraCore can read",
    "took_too_long": "A step exceeded its time limit",
    "provider_not_configured": "The provider is not configured in HydraCore; an operator has to add it or its API token",
    "server_still_there": "The provider has not finished deleting the server yet",
    "server_unaccounted": "The provider has a server of this instance that HydraCore has no record of; an operator has to check it",
    "server_name_taken": "Another server at the provider has the name of this instance's server; an operator has to check it",
    "locked": "The provider is still carrying out another action on the server",
    "agent_refused": "The agent rejected the request",
    "agent_failed": "The agent could not be reached, or its answer was invalid",
    "agent_timeout": "The agent did not answer in time",
    "history_unreadable": "The instance's history cannot be read; an operator has to run hydracore audit verify",
    "internal_error": "An internal error occurred in HydraCore; its logs have the details",
}


def describe(code: str) -> str:
    """`code` in words; an unknown code stands for itself."""
    return TEXTS.get(code, f"The provider answered with the error code {code}")
