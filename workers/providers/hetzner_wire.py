"""The parts of Hetzner's JSON that the driver reads. Fields that are not declared here (root passwords, texts) are never decoded."""

from datetime import datetime
from typing import Final, Literal

import msgspec

from workers.providers.base import Action, Server
from workers.providers.hetzner_errors import safe_code

#: The most entries per page.
PER_PAGE: Final = 50


class Named(msgspec.Struct):
    name: str


class Address(msgspec.Struct):
    ip: str


class PublicNet(msgspec.Struct):
    ipv4: Address | None = None
    ipv6: Address | None = None


class WireServer(msgspec.Struct):
    id: int
    name: str
    status: str
    created: datetime
    public_net: PublicNet
    server_type: Named
    location: Named
    labels: dict[str, str]

    def server(self) -> Server:
        """This server as a `base.Server`."""
        ipv4, ipv6 = self.public_net.ipv4, self.public_net.ipv6
        return Server(
            id=str(self.id),
            name=self.name,
            status=self.status,
            ipv4=ipv4.ip if ipv4 else None,
            ipv6=ipv6.ip if ipv6 else None,
            labels=self.labels,
            location=self.location.name,
            server_type=self.server_type.name,
            created_at=self.created,
        )


class WireActionError(msgspec.Struct):
    code: str


class WireAction(msgspec.Struct):
    id: int
    status: Literal["running", "success", "error"]
    error: WireActionError | None = None

    def action(self) -> Action:
        """This action as a `base.Action`."""
        return Action(
            id=str(self.id), status=self.status, error_code=safe_code(self.error.code) if self.error else None
        )


class WireKey(msgspec.Struct):
    id: int
    name: str
    public_key: str


class Pagination(msgspec.Struct):
    page: int
    next_page: int | None
    last_page: int | None


class Meta(msgspec.Struct):
    pagination: Pagination


class OneServer(msgspec.Struct):
    server: WireServer


class NewServer(msgspec.Struct):
    server: WireServer
    action: WireAction
    next_actions: list[WireAction]


class ServerPage(msgspec.Struct):
    servers: list[WireServer]
    meta: Meta


class OneAction(msgspec.Struct):
    action: WireAction


class ActionPage(msgspec.Struct):
    actions: list[WireAction]


class OneKey(msgspec.Struct):
    ssh_key: WireKey


class KeyPage(msgspec.Struct):
    ssh_keys: list[WireKey]
    meta: Meta


ONE_SERVER: Final = msgspec.json.Decoder(OneServer)
NEW_SERVER: Final = msgspec.json.Decoder(NewServer)
SERVER_PAGE: Final = msgspec.json.Decoder(ServerPage)
ONE_ACTION: Final = msgspec.json.Decoder(OneAction)
ACTION_PAGE: Final = msgspec.json.Decoder(ActionPage)
ONE_KEY: Final = msgspec.json.Decoder(OneKey)
KEY_PAGE: Final = msgspec.json.Decoder(KeyPage)
