"""The ASGI application: all operations, on Litestar."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from litestar import Litestar, Request, Response
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from events.keys import Keyring
from events.store import EventStore
from hydracore.agent_client import AgentClient
from hydracore.api.agent_gate import AgentGate, CallingAgent, ReportingAgent
from hydracore.api.agent_use import AgentUse
from hydracore.api.agents import AgentEndpoints
from hydracore.api.changes import Changes
from hydracore.api.chat import Chats
from hydracore.api.cleanup import Cleanup
from hydracore.api.config_push import ConfigPusher
from hydracore.api.configuration import Configuration, bot_token_error
from hydracore.api.consent import Consent
from hydracore.api.conversations import Conversations
from hydracore.api.cors import Cors
from hydracore.api.edge import Edge
from hydracore.api.errors import error_answer_of
from hydracore.api.health import Health
from hydracore.api.history import Histories, event_types_error, time_error
from hydracore.api.instance_creation import InstanceCreation
from hydracore.api.instances import Instances
from hydracore.api.key_rotation import KeyRotation
from hydracore.api.listing import Listing
from hydracore.api.model_policy import ModelPolicies
from hydracore.api.openapi import document
from hydracore.api.operations import Answer, Authenticate, Operation, operations_of, options_routes, route
from hydracore.api.paging import cursor_error
from hydracore.api.platform_config import PlatformConfiguration
from hydracore.api.preconditions import if_match_error
from hydracore.api.rate_limiter import RateLimiter
from hydracore.api.runtime import RuntimeReader
from hydracore.api.runtime_document import RuntimeDocuments
from hydracore.api.size_limits import slugs_size_error
from hydracore.api.updates import Updates
from hydracore.api.usage import UsageReports
from hydracore.api.vault import Vault
from hydracore.auth import Authenticator, Principal
from hydracore.catalogue import Catalogue
from hydracore.clock import NowMs, now_ms
from hydracore.settings import Settings
from projections.queries import Queries

#: The types of parameters that stand for the caller.
CALLER_TYPES: Final = frozenset({Principal, CallingAgent, ReportingAgent})


class Parts(NamedTuple):
    """What the API depends on, opened and ready."""

    settings: Settings
    catalogue: Catalogue
    pool: AsyncConnectionPool
    store: EventStore
    queries: Queries
    keyring: Keyring
    redis: Redis
    agent_client: AgentClient
    #: None where there is no rate limit.
    limiter: RateLimiter | None = None
    now_ms: NowMs = now_ms


def create_app(parts: Parts) -> ASGIApp:
    """The whole API as one ASGI application."""
    settings, catalogue = parts.settings, parts.catalogue
    authenticator = Authenticator(parts.pool, jwt_secret=settings.jwt_secret, clock=lambda: parts.now_ms() / 1000)
    gate = AgentGate(parts.queries, parts.store, master_keys=settings.master_keys)
    callers: dict[type, Authenticate] = {
        Principal: authenticator.authenticate,
        CallingAgent: gate.authenticate,
        ReportingAgent: gate.authenticate_to_report,
    }
    if parts.limiter is not None:
        callers = {who: parts.limiter.limit(authenticate) for who, authenticate in callers.items()}
    checks = {
        "region": catalogue.region_error,
        "tier": catalogue.tier_error,
        "preset": catalogue.preset_error,
        "time": time_error,
        "event_types": event_types_error,
        "cursor": cursor_error,
        "workflow_slugs": slugs_size_error,
        "bot_token": bot_token_error,
        "if_match": if_match_error,
    }
    served = operations(parts)
    routes = [route(op, callers=callers, checks=checks, body_max_bytes=settings.body_max_bytes) for op in served]
    app = Litestar(
        [*options_routes(served), *routes, _openapi_route(served)],
        exception_handlers={Exception: _answer_error},
        # The project serves its own document: Litestar's cannot express what `operations` declares.
        openapi_config=None,
        # Errors are logged where they are mapped to answers, with the request's id.
        logging_config=None,
        debug=False,
    )
    return Edge(Cors(app, settings.cors_origins) if settings.cors_origins else app)


def operations(parts: Parts) -> list[Operation]:
    """All operations of the API."""
    documents = RuntimeDocuments(
        pool=parts.pool,
        vault=Vault(parts.keyring),
        catalogue=parts.catalogue,
        settings=parts.settings,
        now_ms=parts.now_ms,
    )
    owners = (
        *_lifecycle_endpoints(parts),
        *_use_endpoints(parts, documents),
        *_agent_endpoints(parts, documents),
        Health(parts.pool, parts.redis),
    )
    return list(operations_of(*owners, callers=CALLER_TYPES))


def _lifecycle_endpoints(parts: Parts) -> tuple[object, ...]:
    """Operations that create, show and delete instances."""
    store, queries, now_ms = parts.store, parts.queries, parts.now_ms
    runtime = RuntimeReader(
        store=store,
        agent_client=parts.agent_client,
        master_keys=parts.settings.master_keys,
        heartbeat_interval_s=parts.settings.heartbeat_interval_s,
    )
    histories = Histories(pool=parts.pool, changes=Changes(store), vault=Vault(parts.keyring))
    return (
        Instances(
            store=store,
            queries=queries,
            listing=Listing(queries, parts.keyring),
            runtime=runtime,
            histories=histories,
            now_ms=now_ms,
        ),
        histories,
        InstanceCreation(store=store, keyring=parts.keyring, catalogue=parts.catalogue, now_ms=now_ms),
        Cleanup(store=store, queries=queries, now_ms=now_ms),
    )


def _use_endpoints(parts: Parts, documents: RuntimeDocuments) -> tuple[object, ...]:
    """Operations on an instance in use."""
    agent_client, catalogue, now_ms = parts.agent_client, parts.catalogue, parts.now_ms
    master_keys = parts.settings.master_keys
    changes, vault = Changes(parts.store), Vault(parts.keyring)
    pusher = ConfigPusher(agent_client=agent_client, documents=documents, master_keys=master_keys)
    return (
        Chats(
            changes=changes,
            agent_client=agent_client,
            pool=parts.pool,
            keyring=parts.keyring,
            catalogue=catalogue,
            master_keys=master_keys,
            now_ms=now_ms,
        ),
        Configuration(
            changes=changes,
            vault=vault,
            pusher=pusher,
            agent_client=agent_client,
            catalogue=catalogue,
            master_keys=master_keys,
            now_ms=now_ms,
        ),
        PlatformConfiguration(
            changes=changes, vault=vault, documents=documents, pusher=pusher, catalogue=catalogue, now_ms=now_ms
        ),
        ModelPolicies(changes=changes, pusher=pusher, catalogue=catalogue, now_ms=now_ms),
        Consent(changes=changes, now_ms=now_ms),
        Conversations(
            changes=changes, agent_client=agent_client, keyring=parts.keyring, master_keys=master_keys, now_ms=now_ms
        ),
        Updates(
            changes=changes, agent_client=agent_client, documents=documents, master_keys=master_keys, now_ms=now_ms
        ),
        UsageReports(queries=parts.queries, pool=parts.pool, now_ms=now_ms),
        KeyRotation(changes=changes, now_ms=now_ms),
    )


def _agent_endpoints(parts: Parts, documents: RuntimeDocuments) -> tuple[object, ...]:
    """Operations for the agents."""
    store, now_ms = parts.store, parts.now_ms
    return (
        AgentEndpoints(
            store=store,
            pool=parts.pool,
            documents=documents,
            master_keys=parts.settings.master_keys,
            heartbeat_interval_s=parts.settings.heartbeat_interval_s,
            now_ms=now_ms,
        ),
        AgentUse(store=store, documents=documents, keyring=parts.keyring, now_ms=now_ms),
    )


def _openapi_route(served: list[Operation]) -> Any:
    @cache
    def answer() -> Answer:
        return Answer(200, msgspec.json.encode(document(served)))

    @HTTPRouteHandler("/openapi.json", http_method=[HttpMethod.GET, HttpMethod.HEAD])
    async def openapi() -> ASGIApp:
        return answer()

    return openapi


def _answer_error(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    answer = error_answer_of(error)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(
        msgspec.json.encode(answer.body), status_code=answer.status, headers=headers, media_type="application/json"
    )
