"""Version 1 of `provision_log`: the same lines in earlier words, for databases where no rebuild has made version 2 live.

The next release drops it.
"""

from __future__ import annotations

from typing import Final

from events import types as e
from projections.provision_log import LINES, Line, Lines, ProvisionLogProjection, always

TEXTS: Final = {
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


def _describe(code: str) -> str:
    return TEXTS.get(code, f"The provider answered {code}")


def _health_changed(event: e.HealthChanged) -> Line:
    return Line("info" if event.health == "healthy" else "warning", None, f"The agent is {event.health}")


def _consent_changed(event: e.ConsentChanged) -> Line:
    return Line("info", None, f"Reading conversations was {'allowed' if event.granted else 'forbidden'} to staff")


def _updates_requested(event: e.UpdatesRequested) -> Line:
    how = " with a restart" if event.restart else ""
    what = f"Applying configuration {event.config_version}{how} was asked for"
    return Line("info", None, f"{what}; how that ends is unknown until it is told")


def _updates_failed(event: e.UpdatesFailed) -> Line:
    outcome = "was not applied" if event.nothing_done else "may have been applied or not"
    return Line("warning", None, f"Configuration {event.config_version} {outcome}: {_describe(event.code)}")


_LINES: Final[Lines] = {
    **LINES,
    e.AddressReserved: lambda event: Line("info", "network", f"Reserved {event.hostname}"),
    e.ServerCreated: always("info", "server_created", "The provider has made the server"),
    e.AttemptFailed: lambda event: Line("warning", None, f"Attempt {event.attempt} failed: {_describe(event.code)}"),
    e.ServerDiscarded: lambda event: Line("info", None, f"Nothing is left of attempt {event.attempt}"),
    e.ProvisioningFailed: lambda event: Line("error", None, f"Provisioning failed: {_describe(event.code)}"),
    e.EnrolmentContested: always("error", "bootstrapping", "Somebody else tried to enrol as this agent"),
    e.AgentKeyRevoked: lambda event: Line("info", None, f"The agent's key was revoked ({event.reason})"),
    e.HealthChanged: _health_changed,
    e.ServerVanished: always("error", None, "The server is gone from the provider"),
    e.ConsentChanged: _consent_changed,
    e.UpdatesRequested: _updates_requested,
    e.UpdatesFailed: _updates_failed,
    e.TeardownBlocked: lambda event: Line("warning", "deleting", f"Deletion waits: {_describe(event.code)}"),
}


class ProvisionLogProjection1(ProvisionLogProjection):
    version = 1
    lines = _LINES
