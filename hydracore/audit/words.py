"""What happened, in words: a phrase for each event, which its fields complete."""

from __future__ import annotations

from typing import Final, get_args

from events import types as e

_PHRASES: Final[dict[type[e.Event], str]] = {
    e.InstanceRequested: "a customer asked for an agent",
    e.PlacementChosen: "where to rent the server was chosen",
    e.AddressReserved: "hostname and VPN address were taken",
    e.ServerIntended: "a server is about to be made",
    e.ServerCreated: "the provider has the server",
    e.ServerObserved: "the provider says how the server is",
    e.AttemptFailed: "the attempt to get a server failed",
    e.ServerDiscarded: "nothing of the failed attempt is left",
    e.ProvisioningFailed: "no placement is left to try",
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
    e.UpdatesRequested: "configuration is about to be applied on the agent; how that ends is unknown until it is told",
    e.UpdatesApplied: "pending configuration was applied on the agent",
    e.UpdatesFailed: "the agent did not say that it applied configuration",
    e.ConversationsAccessed: "somebody other than the owner read conversations",
    e.UsageRecorded: "the agent reported calls of models",
    e.DeletionRequested: "somebody asked for the end of the instance",
    e.TeardownStepDone: "a step of the teardown is done",
    e.TeardownBlocked: "the teardown does not get on",
    e.InstanceDeleted: "nothing of the instance is left",
    e.CustomerErased: "the customer's key was destroyed",
}

assert set(_PHRASES) == set(get_args(e.AnyEvent)), "every event of the union has its words"


def phrase(event: e.AnyEvent) -> str:
    return _PHRASES[type(event)]
