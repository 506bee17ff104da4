"""The door to a provider of servers: what can be asked, what comes back, and every way it can fail.

    ProviderError                code and correlation id; never a word of the provider's own text
    ├── ProviderRetry            nothing came of it; the same call may be repeated after `retry_after_s`
    ├── ProviderLater            the server or the provider is busy or broken; try again after `retry_after_s`, which is longer
    ├── ProviderNoCapacity       not this type at this place; another placement may do
    ├── ProviderNameTaken        something of that name exists; look whose it is
    ├── ProviderRefused          repeating cannot help; somebody has to change something
    └── ProviderOutcomeUnknown   a change was sent and no answer came; read before doing anything else

Provider texts are never kept because some of them quote the API token.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec

#: How long to wait where the provider does not say.
RETRY_AFTER_S_DEFAULT = 1.0

#: The same where it is under maintenance or broken, which lasts.
LATER_S_DEFAULT = 15.0

#: Codes that are of the provider as a whole: whatever else there is to ask has to wait, too.
RATE_LIMITED: Final = "rate_limit_exceeded"
UNREACHABLE: Final = "provider_unreachable"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server as its provider describes it. `status` is the provider's word, for instance `running` or `deleting`."""

    id: str
    name: str
    status: str
    ipv4: str | None
    ipv6: str | None
    labels: dict[str, str]
    location: str
    server_type: str
    created_at: datetime


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Something the provider is doing for us. `error_code` is set when `status` is `error`."""

    id: str
    status: Literal["running", "success", "error"]
    error_code: str | None


class CreateServer(msgspec.Struct, frozen=True, kw_only=True):
    """An order for one server. `user_data` holds a one-time token, so it stays out of `repr`."""

    name: str
    server_type: str
    location: str
    image: str
    user_data: str
    labels: dict[str, str]

    def __repr__(self) -> str:
        return (
            f"CreateServer(name={self.name!r}, server_type={self.server_type!r}, location={self.location!r}, "
            f"image={self.image!r}, labels={self.labels!r}, user_data=<{len(self.user_data)} characters>)"
        )


class CreatedServer(msgspec.Struct, frozen=True, kw_only=True):
    """The new server, and the actions that bring it to life."""

    server: Server
    action_ids: tuple[str, ...]


class ProviderError(Exception):
    """A provider call failed. `code` is one of the provider's codes or one of ours, never free text."""

    def __init__(self, code: str, correlation_id: str | None = None) -> None:
        super().__init__(code, correlation_id)
        self.code = code
        self.correlation_id = correlation_id

    def __str__(self) -> str:
        return self.code if self.correlation_id is None else f"{self.code} (correlation id {self.correlation_id})"


class ProviderRetry(ProviderError):
    """Nothing came of the call: a conflict, a rate limit, a bad gateway, or no connection.

    A gateway may lie about that, so a caller that creates still looks before it creates again.
    """

    def __init__(
        self, code: str, correlation_id: str | None = None, *, retry_after_s: float = RETRY_AFTER_S_DEFAULT
    ) -> None:
        super().__init__(code, correlation_id)
        self.retry_after_s = retry_after_s


class ProviderLater(ProviderError):
    """The resource is locked, or the provider is under maintenance, unavailable or broken."""

    def __init__(self, code: str, correlation_id: str | None = None, *, retry_after_s: float = LATER_S_DEFAULT) -> None:
        super().__init__(code, correlation_id)
        self.retry_after_s = retry_after_s


class ProviderNoCapacity(ProviderError):
    """The provider has no such server at this place now."""


class ProviderNameTaken(ProviderError):
    """A resource of this name exists already."""


class ProviderRefused(ProviderError):
    """The provider does not want this, and will not want it the next time either."""


class ProviderOutcomeUnknown(ProviderError):
    """A change may or may not have happened: the call timed out or its connection broke after sending."""


class Provider(Protocol):
    """One project at one provider. Every method may raise any `ProviderError`."""

    async def create_server(self, order: CreateServer, /) -> CreatedServer:
        """Order a server. Ask `find_servers` first: a create is not idempotent."""
        ...

    async def get_server(self, server_id: str, /) -> Server | None:
        """The server, or None when the provider has none of that id."""
        ...

    async def get_server_named(self, name: str, /) -> Server | None:
        """The server of this name, whoever made it."""
        ...

    async def find_servers(self, labels: Mapping[str, str], /) -> list[Server]:
        """All servers that carry all of these labels."""
        ...

    async def delete_server(self, server_id: str, /) -> None:
        """Order the end of a server. Done already, or under way, is no error; look again to see it gone."""
        ...

    async def set_labels(self, server_id: str, labels: Mapping[str, str], /) -> None:
        """Replace all labels of a server."""
        ...

    async def get_actions(self, action_ids: Sequence[str], /) -> list[Action]:
        """What became of these actions. An action that the provider has forgotten is left out."""
        ...

    async def aclose(self) -> None:
        """Let go of all connections."""
        ...
