"""The Hetzner Cloud driver (https://docs.hetzner.cloud/reference/cloud). It drives cloudsim and the real API alike."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from workers.providers.base import (
    Action,
    CreatedServer,
    CreateServer,
    ProviderError,
    ProviderLater,
    ProviderNoCapacity,
    ProviderRefused,
    ProviderRetry,
    Server,
)
from workers.providers.hetzner_errors import INVALID_INPUT, LOCKED, NOT_FOUND, UNREADABLE_ANSWER
from workers.providers.hetzner_http import HetznerHttp, Query
from workers.providers.hetzner_key import HetznerKey
from workers.providers.hetzner_pages import all_pages
from workers.providers.hetzner_wire import ACTION_PAGE, NEW_SERVER, ONE_ACTION, ONE_SERVER, PER_PAGE, SERVER_PAGE

#: The most actions per request.
ACTIONS_PER_CALL: Final = 25

#: The most pages of a list of servers. A longer list is refused, because the servers beyond a cut would seem to have vanished.
SERVER_PAGES_MAX: Final = 400

LABEL_PATTERN: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?")


class HetznerProvider:
    """One Hetzner project (see `base.Provider`). Shared by all tasks of one event loop. Call `aclose` at the end.

    `endpoint` ends in `/v1`. `ssh_public_key` is the OpenSSH public key that all servers get. Without one, they get a key whose private
    key was thrown away.
    """

    def __init__(
        self, endpoint: str, token: str, *, timeout_s: float, ssh_public_key: str | None, ssh_key_name: str
    ) -> None:
        self._endpoint = endpoint
        self._http = HetznerHttp(endpoint, token, timeout_s=timeout_s)
        self._key = HetznerKey(self._http, name=ssh_key_name, public_key=ssh_public_key)

    def __repr__(self) -> str:
        return f"HetznerProvider({self._endpoint!r})"

    async def create_server(self, order: CreateServer, /) -> CreatedServer:
        key_id = await self._key.key_id()
        body = {
            "name": order.name,
            "server_type": order.server_type,
            "location": order.location,
            "image": order.image,
            "ssh_keys": [key_id],
            "user_data": order.user_data,
            "labels": order.labels,
            "start_after_create": True,
            "public_net": {"enable_ipv4": True, "enable_ipv6": True},
        }
        try:
            answer = await self._http.change("POST", "servers", NEW_SERVER, body)
        except ProviderRefused as refusal:
            if refusal.code in {INVALID_INPUT, NOT_FOUND} and await self._key.forget_if_gone(key_id):
                raise ProviderRetry("ssh_key_gone", refusal.correlation_id) from None
            if refusal.code == INVALID_INPUT:
                # Either the type is not available at this location (`unsupported location for server type`), or the order is wrong
                # everywhere. Only the text, which is not read, tells which: `details` is empty for both.
                raise ProviderNoCapacity(refusal.code, refusal.correlation_id) from None
            raise
        server = answer.server.server()
        return CreatedServer(
            server=server, action_ids=tuple(str(action.id) for action in (answer.action, *answer.next_actions))
        )

    async def get_server(self, server_id: str, /) -> Server | None:
        try:
            return (await self._http.get(_server_path(server_id), ONE_SERVER)).server.server()
        except ProviderError as error:
            if error.code == NOT_FOUND:
                return None
            raise

    async def get_server_named(self, name: str, /) -> Server | None:
        answer = await self._http.get("servers", SERVER_PAGE, {"name": name, "page": 1, "per_page": PER_PAGE})
        # Names are unique in a project.
        return next((wire.server() for wire in answer.servers if wire.name == name), None)

    async def find_servers(self, labels: Mapping[str, str], /) -> list[Server]:
        query: Query = {"label_selector": _selector(labels)}
        pages = await all_pages(self._http, "servers", SERVER_PAGE, query, pages_max=SERVER_PAGES_MAX)
        found = {wire.id: wire.server() for page in pages for wire in page.servers}
        if not all(labels.items() <= server.labels.items() for server in found.values()):
            # The caller regards all servers of the answer as its own, and may delete them.
            raise ProviderRetry(UNREADABLE_ANSWER)
        return [found[number] for number in sorted(found)]

    async def delete_server(self, server_id: str, /) -> None:
        try:
            await self._http.change("DELETE", _server_path(server_id), ONE_ACTION)
        except ProviderRefused as refusal:
            if refusal.code != NOT_FOUND:
                raise
        except ProviderLater as later:
            # The provider locks a server while an action runs on it. That may be the deletion of an earlier call.
            if later.code != LOCKED or not await self._is_going(server_id):
                raise

    async def set_labels(self, server_id: str, labels: Mapping[str, str], /) -> None:
        await self._http.change("PUT", _server_path(server_id), ONE_SERVER, {"labels": dict(labels)})

    async def get_actions(self, action_ids: Sequence[str], /) -> list[Action]:
        actions: list[Action] = []
        for start in range(0, len(action_ids), ACTIONS_PER_CALL):
            batch = list(action_ids[start : start + ACTIONS_PER_CALL])
            answer = await self._http.get("actions", ACTION_PAGE, {"id": batch, "per_page": PER_PAGE})
            actions.extend(action.action() for action in answer.actions)
        return actions

    async def aclose(self) -> None:
        await self._key.aclose()
        await self._http.aclose()

    async def _is_going(self, server_id: str) -> bool:
        server = await self.get_server(server_id)
        return server is None or server.status == "deleting"


def _selector(labels: Mapping[str, str]) -> str:
    """A label selector, as in `a==1,b==2`. Invalid labels are our bug. So are none: they would select all servers of the project."""
    assert labels
    for text in (*labels.keys(), *labels.values()):
        assert LABEL_PATTERN.fullmatch(text), text
    return ",".join(f"{key}=={value}" for key, value in labels.items())


def _server_path(server_id: str) -> str:
    """The path of a server. Its id comes from the provider, by way of our log: anything but digits is our bug."""
    assert re.fullmatch(r"[0-9]+", server_id), server_id
    return f"servers/{server_id}"
