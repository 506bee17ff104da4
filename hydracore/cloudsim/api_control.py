"""The control interface under `/_sim`: faults, held requests, accidents, and what really exists.

It takes the API's token. Every answer is a JSON object; errors have the API's shape.
"""

from typing import Annotated, Any, Final

import msgspec
from litestar import Response, Router, delete, get, post, put
from msgspec import Meta

from hydracore.cloudsim.bodies import read_body
from hydracore.cloudsim.faults import FaultOrder
from hydracore.cloudsim.problems import Reply, invalid_input, not_found
from hydracore.cloudsim.sim import AnyRequest, Sim, respond, sim_of


class ReleaseBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: int | None = None
    all: bool = False
    apply: bool = True


class RateLimitBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1)]
    remaining: Annotated[int, Meta(ge=0)]
    refill_per_s: Annotated[float, Meta(gt=0)]


@get("/servers")
async def show_servers(request: AnyRequest) -> Response[bytes]:
    """Every server that exists, with its agent."""
    sim = sim_of(request)
    servers: list[dict[str, Any]] = [
        {
            "id": server.id,
            "name": server.name,
            "labels": server.labels,
            "status": server.status,
            "location": server.location,
            "server_type": server.server_type,
            "ipv4": server.ipv4,
            "pid": sim.reconciler.pid(server.id),
            "alive": sim.reconciler.alive(server.id),
        }
        for server in sim.store.servers()
    ]
    return respond(Reply(200, {"servers": servers}))


@get("/history")
async def show_history(request: AnyRequest) -> Response[bytes]:
    """Every server that ever existed, so that a test can prove what never happened."""
    return respond(Reply(200, {"servers": sim_of(request).store.history()}))


@get("/requests")
async def show_requests(request: AnyRequest) -> Response[bytes]:
    return respond(Reply(200, {"requests": dict(sim_of(request).requests)}))


@get("/faults")
async def show_faults(request: AnyRequest) -> Response[bytes]:
    return respond(Reply(200, {"faults": sim_of(request).faults.all()}))


@post("/faults", status_code=200)
async def add_fault(request: AnyRequest) -> Response[bytes]:
    sim = sim_of(request)
    number = sim.faults.add(read_body(await request.body(), FaultOrder))
    return respond(Reply(200, {"id": number}))


@delete("/faults", status_code=200)
async def clear_faults(request: AnyRequest) -> Response[bytes]:
    return respond(Reply(200, {"cleared": sim_of(request).faults.clear()}))


@get("/held")
async def show_held(request: AnyRequest) -> Response[bytes]:
    return respond(Reply(200, {"held": sim_of(request).held.all()}))


@post("/release", status_code=200)
async def release(request: AnyRequest) -> Response[bytes]:
    body = read_body(await request.body(), ReleaseBody)
    if (body.id is None) != body.all:
        raise invalid_input("id", "give either id, or all: true")
    released = sim_of(request).held.release(body.id, apply=body.apply)
    if body.id is not None and not released:
        raise not_found("held request", body.id)
    return respond(Reply(200, {"released": released}))


@put("/rate_limit")
async def set_rate_limit(request: AnyRequest) -> Response[bytes]:
    body = read_body(await request.body(), RateLimitBody)
    sim_of(request).quota.set(limit=body.limit, remaining=body.remaining, refill_per_s=body.refill_per_s)
    return respond(Reply(200, body))


@post("/servers/{server_id:int}/vanish", status_code=200)
async def vanish(request: AnyRequest, server_id: int) -> Response[bytes]:
    sim = sim_of(request)
    _check_exists(sim, server_id)
    await sim.reconciler.vanish(server_id)
    return respond(Reply(200, {"vanished": server_id}))


@post("/servers/{server_id:int}/kill", status_code=200)
async def kill_agent(request: AnyRequest, server_id: int) -> Response[bytes]:
    sim = sim_of(request)
    _check_exists(sim, server_id)
    return respond(Reply(200, {"killed": await sim.reconciler.kill_agent(server_id)}))


@post("/shutdown", status_code=200)
async def shutdown(request: AnyRequest) -> Response[bytes]:
    """Stop all agents, and answer when they are gone. cloudsim itself runs until a signal ends it."""
    return respond(Reply(200, {"stopped": await sim_of(request).reconciler.stop_agents()}))


def _check_exists(sim: Sim, server_id: int) -> None:
    if sim.store.server(server_id) is None:
        raise not_found("server", server_id)


CONTROL: Final = Router(
    "/_sim",
    route_handlers=[
        show_servers,
        show_history,
        show_requests,
        show_faults,
        add_fault,
        clear_faults,
        show_held,
        release,
        set_rate_limit,
        vanish,
        kill_agent,
        shutdown,
    ],
)
