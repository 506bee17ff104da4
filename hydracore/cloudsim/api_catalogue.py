"""SSH keys, and what can be ordered, under `/v1`."""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from litestar import Response, Router, delete, get, post, put

from hydracore.cloudsim.bodies import CreateKeyBody, UpdateBody, read_body
from hydracore.cloudsim.catalogue import IMAGES, LOCATIONS, SERVER_TYPES, Entry, find
from hydracore.cloudsim.labels import check_labels, parse_selector
from hydracore.cloudsim.paging import page_of, sort_items
from hydracore.cloudsim.problems import Reply, invalid_input, not_found
from hydracore.cloudsim.records import Effects, KeyRecord
from hydracore.cloudsim.render import render_key
from hydracore.cloudsim.sim import AnyRequest, Sim, sim_of

KEY_SORTS: Final[dict[str, Callable[[KeyRecord], Any]]] = {"id": lambda key: key.id, "name": lambda key: key.name}
KEY_TYPES: Final = ("ssh-", "ecdsa-", "sk-")


@post("/ssh_keys")
async def create_ssh_key(request: AnyRequest) -> Response[bytes]:
    sim = sim_of(request)
    body = read_body(await request.body(), CreateKeyBody)

    def apply(_: Effects) -> Reply:
        if not body.name:
            raise invalid_input("name", "name must not be empty")
        check_labels(body.labels)
        key = sim.store.create_key(
            name=body.name, fingerprint=_fingerprint(body.public_key), public_key=body.public_key, labels=body.labels
        )
        return Reply(201, {"ssh_key": render_key(key)})

    return await sim.perform(request, "create_ssh_key", {"name": body.name}, apply)


@get("/ssh_keys")
async def list_ssh_keys(request: AnyRequest) -> Response[bytes]:
    sim, query = sim_of(request), request.query_params

    def apply(_: Effects) -> Reply:
        selected = parse_selector(query.get("label_selector", ""))
        name, fingerprint = query.get("name"), query.get("fingerprint")
        keys = [
            key
            for key in sim.store.ssh_keys()
            if name in {None, key.name} and fingerprint in {None, key.fingerprint} and selected(key.labels)
        ]
        ordered = sort_items(keys, query.getall("sort", []), KEY_SORTS)
        found, meta = page_of(ordered, page=query.get("page"), per_page=query.get("per_page"))
        return Reply(200, {"ssh_keys": [render_key(key) for key in found], "meta": meta})

    return await sim.perform(request, "list_ssh_keys", {}, apply)


@get("/ssh_keys/{key_id:int}")
async def get_ssh_key(request: AnyRequest, key_id: int) -> Response[bytes]:
    sim = sim_of(request)

    def apply(_: Effects) -> Reply:
        return Reply(200, {"ssh_key": render_key(_key(sim, key_id))})

    return await sim.perform(request, "get_ssh_key", {}, apply)


@put("/ssh_keys/{key_id:int}")
async def update_ssh_key(request: AnyRequest, key_id: int) -> Response[bytes]:
    sim = sim_of(request)
    body = read_body(await request.body(), UpdateBody)

    def apply(_: Effects) -> Reply:
        _key(sim, key_id)
        check_labels(body.labels or {})
        sim.store.update_key(key_id, name=body.name, labels=body.labels)
        return Reply(200, {"ssh_key": render_key(_key(sim, key_id))})

    return await sim.perform(request, "update_ssh_key", {}, apply)


@delete("/ssh_keys/{key_id:int}", status_code=200)
async def delete_ssh_key(request: AnyRequest, key_id: int) -> Response[bytes]:
    sim = sim_of(request)

    def apply(_: Effects) -> Reply:
        sim.store.delete_key(_key(sim, key_id).id)
        return Reply(204, None)

    return await sim.perform(request, "delete_ssh_key", {}, apply)


@get(["/server_types", "/server_types/{entry_id:int}"])
async def list_server_types(request: AnyRequest) -> Response[bytes]:
    return await _catalogue(request, "server_type", SERVER_TYPES)


@get(["/locations", "/locations/{entry_id:int}"])
async def list_locations(request: AnyRequest) -> Response[bytes]:
    return await _catalogue(request, "location", LOCATIONS)


@get(["/images", "/images/{entry_id:int}"])
async def list_images(request: AnyRequest) -> Response[bytes]:
    return await _catalogue(request, "image", IMAGES)


async def _catalogue(request: AnyRequest, kind: str, entries: Sequence[Entry]) -> Response[bytes]:
    """One entry by its id, or a page of those of a name."""
    sim, query = sim_of(request), request.query_params
    entry_id: int | None = request.path_params.get("entry_id")

    def apply(_: Effects) -> Reply:
        if entry_id is not None:
            entry = find(entries, entry_id)
            if entry is None:
                raise not_found(kind, entry_id)
            return Reply(200, {kind: entry.render()})
        wanted = [entry for entry in entries if query.get("name") in {None, entry.name}]
        found, meta = page_of(wanted, page=query.get("page"), per_page=query.get("per_page"))
        return Reply(200, {f"{kind}s": [entry.render() for entry in found], "meta": meta})

    return await sim.perform(request, f"list_{kind}s", {}, apply)


def _key(sim: Sim, key_id: int) -> KeyRecord:
    key = sim.store.key(key_id)
    if key is None:
        raise not_found("ssh_key", key_id)
    return key


def _fingerprint(public_key: str) -> str:
    """MD5 in pairs of digits, as the API shows it. Raises `ApiError` for what is no OpenSSH public key."""
    kind, _, rest = public_key.strip().partition(" ")
    try:
        material = base64.b64decode(rest.partition(" ")[0], validate=True)
    except (binascii.Error, ValueError):
        material = b""
    if not kind.startswith(KEY_TYPES) or not material:
        raise invalid_input("public_key", "public_key is not a valid SSH public key")
    digest = hashlib.md5(material, usedforsecurity=False).hexdigest()
    return ":".join(digest[place : place + 2] for place in range(0, len(digest), 2))


CATALOGUE: Final = Router(
    "/v1",
    route_handlers=[
        create_ssh_key,
        list_ssh_keys,
        get_ssh_key,
        update_ssh_key,
        delete_ssh_key,
        list_server_types,
        list_locations,
        list_images,
    ],
)
