"""The interface of a server provider: its calls, their results, and all errors.

    ProviderError                has a code and a correlation id, but no text of the provider
    ├── ProviderWait             may succeed after `retry_after_s`
    │   ├── ProviderRetry        the call had no effect
    │   └── ProviderLater        the server or the provider is busy or broken, which usually lasts longer
    ├── ProviderNoCapacity       this server type is not available at this location; another placement may be
    ├── ProviderNameTaken        a resource of this name exists; look whose it is
    ├── ProviderRefused          a repetition cannot succeed; somebody has to change something
    └── ProviderOutcomeUnknown   a change was sent, but no answer came; read the state before doing anything else

The provider's texts are never kept, because some of them quote the API token.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec

#: The seconds to wait before a retry if the provider does not say how long.
RETRY_AFTER_S_DEFAULT = 1.0

#: The same if the provider is under maintenance or broken, which lasts longer.
LATER_S_DEFAULT = 15.0

#: Codes that concern the provider as a whole: all other requests to it have to wait, too.
RATE_LIMITED: Final = "rate_limit_exceeded"
UNREACHABLE: Final = "provider_unreachable"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server as its provider describes it. `status` is the provider's own, for instance `running` or `deleting`."""

    id: str
    name: str
    status: str
    ipv4: str | None
    ipv6: str | None
    labels: dict[str, str]
    location: str
    server_type: str
    created_at: datetime

    @property
    def age_order(self) -> tuple[datetime, int, str]:
        """Sorts older servers first. Of those created in the same second, the one with the smaller id is older."""
        # Ids are numbers in decimal at Hetzner: the shorter one is smaller.
        return self.created_at, len(self.id), self.id


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that the provider carries out. `error_code` is set if `status` is `error`."""

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
    """The new server, and the actions that create and start it."""

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


class ProviderWait(ProviderError):
    """The same call may succeed after `retry_after_s` seconds."""

    def __init__(
        self, code: str, correlation_id: str | None = None, *, retry_after_s: float = RETRY_AFTER_S_DEFAULT
    ) -> None:
        super().__init__(code, correlation_id)
        self.retry_after_s = retry_after_s


class ProviderRetry(ProviderWait):
    """The call had no effect: a conflict, a rate limit, a bad gateway, or no connection.

    Behind a gateway that is not certain, so a caller that creates a server looks for it before it creates it again.
    """


class ProviderLater(ProviderWait):
    """The resource is locked, or the provider is under maintenance, unavailable or broken."""


class ProviderNoCapacity(ProviderError):
    """The provider cannot create a server of this type at this location now."""


class ProviderNameTaken(ProviderError):
    """A resource of this name exists already."""


class ProviderRefused(ProviderError):
    """The provider refuses the call, and would refuse its repetition."""


class ProviderOutcomeUnknown(ProviderError):
    """A change may or may not have happened: the call timed out or its connection broke after sending."""


class Provider(Protocol):
    """One project at one provider. Every method may raise any `ProviderError`."""

    async def create_server(self, order: CreateServer, /) -> CreatedServer:
        """Create a server. Call `find_servers` first, because this is not idempotent."""
        ...

    async def get_server(self, server_id: str, /) -> Server | None:
        """The server, or None if the provider has none with this id."""
        ...

    async def get_server_named(self, name: str, /) -> Server | None:
        """The server of this name, whoever created it, or None."""
        ...

    async def find_servers(self, labels: Mapping[str, str], /) -> list[Server]:
        """All servers that carry all of these labels."""
        ...

    async def delete_server(self, server_id: str, /) -> None:
        """Start the deletion of a server. No error if it is gone or being deleted already. Look again to see that it is gone."""
        ...

    async def set_labels(self, server_id: str, labels: Mapping[str, str], /) -> None:
        """Replace all labels of a server."""
        ...

    async def get_actions(self, action_ids: Sequence[str], /) -> list[Action]:
        """The present state of these actions. Actions that the provider has forgotten are left out."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
