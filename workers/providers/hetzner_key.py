"""The SSH key that all servers get.

For a server without a key, the provider generates a root password and sends it in its answer. So servers always get a key: the
operator's, or one whose private key is thrown away at once, so that nobody can log in with it.
"""

import asyncio
import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from workers.providers.base import ProviderNameTaken, ProviderOutcomeUnknown, ProviderRetry
from workers.providers.hetzner_http import HetznerHttp
from workers.providers.hetzner_pages import all_pages
from workers.providers.hetzner_wire import KEY_PAGE, ONE_KEY, WireKey

#: The most pages of a list of keys. No project has more.
KEY_PAGES_MAX: Final = 20


class HetznerKey:
    """Makes sure that the key is in the project, and remembers its id. `public_key`: in OpenSSH's format; None for a throwaway key."""

    def __init__(self, http: HetznerHttp, *, name: str, public_key: str | None) -> None:
        self._http = http
        # A throwaway key is found by its name only. So its name must differ from that of an operator's key, which somebody can log in
        # with. Names of installations have no `@`, so operators' keys have none either.
        self._name = name if public_key is not None else f"throwaway@{name}"
        self._public_key = public_key
        self._id: int | None = None
        # If many servers are created at once, one lookup of the key runs, and all callers wait for its result or failure.
        self._lookup: asyncio.Task[int] | None = None
        self._checking = asyncio.Lock()

    async def key_id(self) -> int:
        """The id of the key in this project. Creates the key if it is absent."""
        if self._id is not None:
            return self._id
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.create_task(self._ensure())
            # If all waiting callers are cancelled, nobody else retrieves the task's exception.
            self._lookup.add_done_callback(_retrieve_exception)
        else:
            self._http.refuse_if_silent()
        # Shielded, so that the lookup continues for the others if this caller is cancelled.
        self._id = found = await asyncio.shield(self._lookup)
        return found

    async def forget_if_gone(self, key_id: int) -> bool:
        """Whether somebody removed the key from the project. If so, its id is forgotten, and the next `key_id` creates it again.

        `key_id` is the id with which the caller's request was refused. Another caller may have noticed first, and the key may have
        another id by now.
        """
        async with self._checking:
            if self._id != key_id:
                return True
            if any(key.id == key_id for key in await self._list(name=None)):
                return False
            self._id = None
            return True

    async def aclose(self) -> None:
        """Cancel a lookup that is still running."""
        if self._lookup is not None:
            self._lookup.cancel()
            await asyncio.wait([self._lookup])

    async def _ensure(self) -> int:
        named = await self._list(name=self._name)
        if (found := self._match(named)) is not None:
            return found.id
        # The operator has changed the key. The old one stays for the servers that have it, and the new one gets another name.
        name = f"{self._name}-{_short_digest(self._public_key)}" if named and self._public_key else self._name
        try:
            return await self._create(name)
        except ProviderNameTaken:
            # Another worker has created the key meanwhile, or it exists under another name.
            found = self._match(await self._list(name=None))
        except ProviderOutcomeUnknown as unknown:
            # Whether the key exists is unknown, but no server was requested yet: the next try finds the key or creates it.
            raise ProviderRetry(unknown.code, unknown.correlation_id) from None
        if found is None:
            raise ProviderRetry("ssh_key_moved")
        return found.id

    def _match(self, keys: list[WireKey]) -> WireKey | None:
        """Our key among `keys`: the one with the same key material, or, for a throwaway key, the one with our name."""
        if self._public_key is None:
            return next((key for key in keys if key.name == self._name), None)
        wanted = _material(self._public_key)
        return next((key for key in keys if _material(key.public_key) == wanted), None)

    async def _create(self, name: str) -> int:
        body = {"name": name, "public_key": self._public_key or _throwaway_public_key()}
        return (await self._http.change("POST", "ssh_keys", ONE_KEY, body)).ssh_key.id

    async def _list(self, *, name: str | None) -> list[WireKey]:
        query = {} if name is None else {"name": name}
        pages = await all_pages(self._http, "ssh_keys", KEY_PAGE, query, pages_max=KEY_PAGES_MAX)
        return [key for page in pages for key in page.ssh_keys]


def _retrieve_exception(lookup: asyncio.Task[int]) -> None:
    if not lookup.cancelled():
        lookup.exception()


def _material(public_key: str) -> tuple[str, ...]:
    """The type and the key, without the comment, which providers may change."""
    return tuple(public_key.split()[:2])


def _short_digest(public_key: str) -> str:
    return hashlib.sha256(" ".join(_material(public_key)).encode()).hexdigest()[:8]


def _throwaway_public_key() -> str:
    public_key = Ed25519PrivateKey.generate().public_key()
    return public_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
