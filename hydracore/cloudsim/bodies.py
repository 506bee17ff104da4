"""Request bodies, checked against the catalogue and the API's rules."""

import re
from typing import Final, TypeVar

import msgspec

from hydracore.cloudsim.catalogue import IMAGES, LOCATIONS, SERVER_TYPES, Entry, find
from hydracore.cloudsim.labels import check_labels
from hydracore.cloudsim.problems import ApiError, invalid_input
from hydracore.cloudsim.records import Effects, NewServer
from hydracore.json_input import JSON_ERRORS

USER_DATA_BYTES_MAX: Final = 32 * 1024

#: A host name of RFC 1123: dots between labels of letters, digits and inner dashes.
HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*"
)
FIELD_IN_MESSAGE: Final = re.compile(r"field `([a-z_0-9]+)`|`\$\.([a-z_0-9]+)")

Body = TypeVar("Body")


class PublicNet(msgspec.Struct):
    enable_ipv4: bool = True
    enable_ipv6: bool = True


class CreateServerBody(msgspec.Struct, kw_only=True):
    name: str
    server_type: str | int
    image: str | int
    location: str | int | None = None
    ssh_keys: list[str | int] = []
    user_data: str | None = None
    labels: dict[str, str] = {}
    start_after_create: bool | None = True
    public_net: PublicNet = msgspec.field(default_factory=PublicNet)

    def order(self, effects: Effects) -> NewServer:
        """The checked order. SSH keys and the uniqueness of the name are not checked here. Raises `ApiError`."""
        check_host_name(self.name)
        check_labels(self.labels)
        if len((self.user_data or "").encode()) > USER_DATA_BYTES_MAX:
            raise invalid_input("user_data", f"user_data must not exceed {USER_DATA_BYTES_MAX} bytes")
        location = LOCATIONS[0] if self.location is None else _known("location", LOCATIONS, self.location)
        return NewServer(
            name=self.name,
            server_type=_known("server_type", SERVER_TYPES, self.server_type).name,
            location=location.name,
            image=_known("image", IMAGES, self.image).name,
            labels=self.labels,
            user_data=self.user_data or "",
            start=self.start_after_create is not False,
            want_ipv4=self.public_net.enable_ipv4,
            want_ipv6=self.public_net.enable_ipv6,
            effects=effects,
        )


class UpdateBody(msgspec.Struct, kw_only=True):
    name: str | None = None
    labels: dict[str, str] | None = None


class CreateKeyBody(msgspec.Struct, kw_only=True):
    name: str
    public_key: str
    labels: dict[str, str] = {}


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """Decode a body. Raises `ApiError`: `json_error` if it is not JSON, `invalid_input` if it does not fit `kind`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        match = FIELD_IN_MESSAGE.search(str(error))
        field = (match[1] or match[2]) if match else "body"
        raise invalid_input(field, str(error)) from None
    except JSON_ERRORS:
        raise ApiError(400, "json_error", "malformed JSON") from None


def check_host_name(name: str) -> None:
    if not HOST_NAME.fullmatch(name):
        raise invalid_input("name", "name must be a valid hostname")


def _known(field: str, entries: tuple[Entry, ...], id_or_name: str | int) -> Entry:
    entry = find(entries, id_or_name)
    if entry is None:
        raise invalid_input(field, f"{field} not found")
    return entry
