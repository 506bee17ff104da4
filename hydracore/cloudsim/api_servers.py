"""Servers and their actions under `/v1`."""

import re
from collections.abc import Callable
from typing import Any, Final

from litestar import Response, Router, delete, get, post, put

from hydracore.cloudsim.bodies import CreateServerBody, UpdateBody, check_host_name, read_body
from hydracore.cloudsim.labels import check_labels, parse_selector
from hydracore.cloudsim.paging import page_of, sort_items
from hydracore.cloudsim.problems import ApiError, Reply, invalid_input, locked, not_found
from hydracore.cloudsim.records import ActionRecord, Effects, ServerRecord
from hydracore.cloudsim.render import render_action, render_server
from hydracore.cloudsim.sim import AnyRequest, Sim, facts_of, sim_of

SERVER_SORTS: Final[dict[str, Callable[[ServerRecord], Any]]] = {
    "id": lambda server: server.id,
    "name": lambda server: server.name,
    "created": lambda server: server.created_at,
}
ACTION_SORTS: Final[dict[str, Callable[[ActionRecord], Any]]] = {
    "id": lambda action: action.id,
    "command": lambda action: action.command,
    "status": lambda action: action.status,
    "progress": lambda action: action.status != "running",
    "started": lambda action: action.started_at,
    "finished": lambda action: (action.finished_at is not None, action.finished_at),
}

NUMBER: Final = re.compile(r"[0-9]{1,18}")

#: By verb of `POST /servers/{id}/actions/{verb}`: the action's command, the server's status during
#: the action (None: unchanged), and the status that the server must have for that.
POWER: Final[dict[str, tuple[str, str | None, str]]] = {
    "poweron": ("start_server", "starting", "off"),
    "poweroff": ("stop_server", "stopping", "running"),
    "shutdown": ("shutdown_server", "stopping", "running"),
    "reboot": ("reboot_server", None, "running"),
    "reset": ("reset_server", None, "running"),
}


@post("/servers")
async def create_server(request: AnyRequest) -> Response[bytes]:
    sim = sim_of(request)
    body = read_body(await request.body(), CreateServerBody)

    def apply(effects: Effects) -> Reply:
        order = body.order(effects)
        for key in body.ssh_keys:
            if not any(str(key) in {known.name, str(known.id)} for known in sim.store.ssh_keys()):
                raise invalid_input("ssh_keys", "SSH key not found")
        server, actions = sim.store.create_server(order)
        sim.reconciler.schedule_reconcile(server.id)
        action, *next_actions = map(render_action, actions)
        rendered = {"server": render_server(server), "action": action, "next_actions": next_actions}
        # The password is made up. What matters is that there is one if no key was sent.
        return Reply(201, {**rendered, "root_password": None if body.ssh_keys else f"root-{server.id:012d}"})

    facts = {"name": body.name, "location": body.location, "server_type": body.server_type}
    return await sim.perform(request, "create_server", facts, apply)


@get("/servers")
async def list_servers(request: AnyRequest) -> Response[bytes]:
    sim, query = sim_of(request), request.query_params

    def apply(_: Effects) -> Reply:
        selected = parse_selector(query.get("label_selector", ""))
        names, statuses = query.getall("name", []), query.getall("status", [])
        servers = [
            server
            for server in sim.store.servers()
            if (not names or server.name in names)
            and (not statuses or server.status in statuses)
            and selected(server.labels)
        ]
        ordered = sort_items(servers, query.getall("sort", []), SERVER_SORTS)
        found, meta = page_of(ordered, page=query.get("page"), per_page=query.get("per_page"))
        return Reply(200, {"servers": [render_server(server) for server in found], "meta": meta})

    return await sim.perform(request, "list_servers", {}, apply)


@get("/servers/{server_id:int}")
async def get_server(request: AnyRequest, server_id: int) -> Response[bytes]:
    sim = sim_of(request)

    def apply(_: Effects) -> Reply:
        return Reply(200, {"server": render_server(_server(sim, server_id))})

    return await sim.perform(request, "get_server", _facts(sim, server_id), apply)


@put("/servers/{server_id:int}")
async def update_server(request: AnyRequest, server_id: int) -> Response[bytes]:
    sim = sim_of(request)
    body = read_body(await request.body(), UpdateBody)

    def apply(_: Effects) -> Reply:
        _server(sim, server_id)
        if body.name is not None:
            check_host_name(body.name)
        check_labels(body.labels or {})
        sim.store.update_server(server_id, name=body.name, labels=body.labels)
        return Reply(200, {"server": render_server(_server(sim, server_id))})

    return await sim.perform(request, "update_server", _facts(sim, server_id), apply)


@delete("/servers/{server_id:int}", status_code=200)
async def delete_server(request: AnyRequest, server_id: int) -> Response[bytes]:
    sim = sim_of(request)

    def apply(effects: Effects) -> Reply:
        _require_unlocked(_server(sim, server_id))
        return Reply(
            200, {"action": render_action(_begin_action(sim, server_id, "delete_server", "deleting", effects))}
        )

    return await sim.perform(request, "delete_server", _facts(sim, server_id), apply)


@post("/servers/{server_id:int}/actions/{verb:str}")
async def power_server(request: AnyRequest, server_id: int, verb: str) -> Response[bytes]:
    sim = sim_of(request)
    if verb not in POWER:
        raise ApiError(404, "not_found", "action not found")
    command, status, status_before = POWER[verb]

    def apply(effects: Effects) -> Reply:
        server = _server(sim, server_id)
        _require_unlocked(server)
        # As with a real machine, switching on what is on does nothing, successfully.
        meanwhile = status if server.status == status_before else None
        return Reply(201, {"action": render_action(_begin_action(sim, server_id, command, meanwhile, effects))})

    return await sim.perform(request, "power_server", _facts(sim, server_id), apply)


@get("/servers/{server_id:int}/actions")
async def list_server_actions(request: AnyRequest, server_id: int) -> Response[bytes]:
    sim = sim_of(request)

    def apply(_: Effects) -> Reply:
        _server(sim, server_id)
        return _action_page(request, sim.store.server_actions(server_id))

    return await sim.perform(request, "list_server_actions", _facts(sim, server_id), apply)


@get(
    ["/servers/{server_id:int}/actions/{action_id:int}", "/servers/actions/{action_id:int}", "/actions/{action_id:int}"]
)
async def get_action(request: AnyRequest, action_id: int) -> Response[bytes]:
    sim = sim_of(request)
    server_id = request.path_params.get("server_id")

    def apply(_: Effects) -> Reply:
        action = sim.store.action(action_id)
        if action is None or server_id not in {None, action.server_id}:
            raise not_found("action", action_id)
        return Reply(200, {"action": render_action(action)})

    return await sim.perform(request, "get_action", {"server_id": server_id}, apply)


@get(["/actions", "/servers/actions"])
async def get_actions(request: AnyRequest) -> Response[bytes]:
    sim = sim_of(request)

    def apply(_: Effects) -> Reply:
        ids = request.query_params.getall("id", [])
        # As in Hetzner's API, which no longer lists all actions, only those of given ids.
        if not ids or not all(NUMBER.fullmatch(number) for number in ids):
            raise invalid_input("id", "one or more action ids are required")
        actions = [sim.store.action(int(number)) for number in dict.fromkeys(ids)]
        return _action_page(request, [action for action in actions if action is not None])

    return await sim.perform(request, "get_actions", {}, apply)


def _action_page(request: AnyRequest, actions: list[ActionRecord]) -> Reply:
    query = request.query_params
    statuses = query.getall("status", [])
    wanted = [action for action in actions if not statuses or action.status in statuses]
    ordered = sort_items(wanted, query.getall("sort", []), ACTION_SORTS)
    found, meta = page_of(ordered, page=query.get("page"), per_page=query.get("per_page"))
    return Reply(200, {"actions": [render_action(action) for action in found], "meta": meta})


def _begin_action(sim: Sim, server_id: int, command: str, status: str | None, effects: Effects) -> ActionRecord:
    action = sim.store.begin_action(server_id, command, status=status, fail_with=effects.fail_with)
    sim.reconciler.schedule_reconcile(server_id)
    return action


def _server(sim: Sim, server_id: int) -> ServerRecord:
    server = sim.store.server(server_id)
    if server is None:
        raise not_found("server", server_id)
    return server


def _require_unlocked(server: ServerRecord) -> None:
    """Raises `ApiError` if an action is running on the server: there is one at a time."""
    if server.locked:
        raise locked()


def _facts(sim: Sim, server_id: int) -> dict[str, Any]:
    server = sim.store.server(server_id)
    return {"server_id": server_id} if server is None else facts_of(server)


SERVERS: Final = Router(
    "/v1",
    route_handlers=[
        create_server,
        list_servers,
        get_server,
        update_server,
        delete_server,
        power_server,
        list_server_actions,
        get_action,
        get_actions,
    ],
)
