"""Records in the shape of Hetzner's JSON (https://docs.hetzner.cloud/reference/cloud)."""

from datetime import datetime
from typing import Any

from hydracore.cloudsim.catalogue import IMAGES, LOCATIONS, SERVER_TYPES, find
from hydracore.cloudsim.records import ActionRecord, KeyRecord, ServerRecord


def render_server(server: ServerRecord) -> dict[str, Any]:
    server_type = find(SERVER_TYPES, server.server_type)
    location = find(LOCATIONS, server.location)
    image = find(IMAGES, server.image)
    return {
        "id": server.id,
        "name": server.name,
        "status": server.status,
        "created": _time(server.created_at),
        "public_net": {
            "ipv4": _ipv4(server),
            "ipv6": _ipv6(server),
            "floating_ips": [],
            "firewalls": [],
        },
        "private_net": [],
        "server_type": server_type.render() if server_type else None,
        "location": location.render() if location else None,
        "image": image.render() if image else None,
        "iso": None,
        "rescue_enabled": False,
        "locked": server.locked,
        "backup_window": None,
        "outgoing_traffic": 0,
        "ingoing_traffic": 0,
        "included_traffic": 20 * 2**40,
        "primary_disk_size": server_type.disk_gb if server_type else 0,
        "protection": {"delete": False, "rebuild": False},
        "labels": server.labels,
        "volumes": [],
        "load_balancers": [],
        "placement_group": None,
    }


def render_action(action: ActionRecord) -> dict[str, Any]:
    failed = action.status == "error"
    return {
        "id": action.id,
        "command": action.command,
        "status": action.status,
        "progress": 0 if action.status == "running" else 100,
        "started": _time(action.started_at),
        "finished": _time(action.finished_at) if action.finished_at else None,
        "resources": [{"id": action.server_id, "type": "server"}],
        "error": {"code": action.fail_with, "message": "Action failed"} if failed else None,
    }


def render_key(key: KeyRecord) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "fingerprint": key.fingerprint,
        "public_key": key.public_key,
        "labels": key.labels,
        "created": _time(key.created_at),
    }


def _ipv4(server: ServerRecord) -> dict[str, Any] | None:
    if server.ipv4 is None:
        return None
    return {
        "id": 2 * server.id,
        "ip": server.ipv4,
        "blocked": False,
        "dns_ptr": f"static.{server.ipv4}.clients.invalid",
    }


def _ipv6(server: ServerRecord) -> dict[str, Any] | None:
    if server.ipv6 is None:
        return None
    return {"id": 2 * server.id + 1, "ip": server.ipv6, "blocked": False, "dns_ptr": []}


def _time(moment: datetime) -> str:
    """ISO 8601 with whole seconds, as the API has it."""
    return moment.isoformat(timespec="seconds")
