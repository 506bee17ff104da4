"""A phrase for each event that says what happened. The event's fields complete it."""

from __future__ import annotations

from typing import Final, get_args

from events import types as e

_PHRASES: Final[dict[type[e.Event], str]] = {
    e.InstanceRequested: "a customer asked for an agent",
    e.PlacementChosen: "the provider and location of the server were chosen",
    e.AddressReserved: "hostname and VPN address were taken",
    e.ServerIntended: "a server is about to be made",
    e.ServerCreated: "the provider has the server",
    e.ServerObserved: "the provider reported the server's status",
    e.AttemptFailed: "the attempt to get a server failed",
    e.ServerDiscarded: "everything of the failed attempt was removed",
    e.ProvisioningFailed: "provisioning was given up",
    e.AgentEnrolled: "the agent made contact and bound its keys",
    e.EnrolmentContested: "another key tried to enrol with the right token",
    e.AgentKeyIssued: "the agent was given an API key",
    e.AgentKeyAcknowledged: "the agent has stored its API key",
    e.AgentKeyRevoked: "the agent's API key is void",
    e.BootstrapReported: "the agent reported from its boot",
    e.InstanceReady: "the agent was seen healthy and runs",
    e.HealthChanged: "the agent's health changed",
    e.ServerVanished: "the server is gone from the provider",
    e.ConfigChanged: "the configuration was changed",
    e.PlatformConfigPatched: "the platform configuration was changed",
    e.ModelPolicyChanged: "the model policy was changed",
    e.ConsentChanged: "the owner decided whether staff may read conversations",
    e.UpdatesRequested: "configuration is about to be applied on the agent; the outcome is not known yet",
    e.UpdatesApplied: "pending configuration was applied on the agent",
    e.UpdatesFailed: "the agent did not confirm that it applied configuration",
    e.ConversationsAccessed: "somebody other than the owner read conversations",
    e.UsageRecorded: "the agent reported calls of models",
    e.DeletionRequested: "the deletion of the instance was requested",
    e.TeardownStepDone: "a step of the teardown is done",
    e.TeardownBlocked: "the teardown is blocked",
    e.InstanceDeleted: "everything of the instance was removed",
    e.CustomerErased: "the customer's key was destroyed",
}

assert set(_PHRASES) == set(get_args(e.AnyEvent)), "every event of the union has a phrase"


def phrase(event: e.AnyEvent) -> str:
    return _PHRASES[type(event)]
