"""The SSH key that goes with every server.

Without a key the provider makes a root password and sends it in the answer. So there is always one: the operator's, or one
whose private half is thrown away as soon as it is made, which nobody can log in with.
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

#: No project holds more keys than fit on this many pages.
KEY_PAGES_MAX: Final = 20


class HetznerKey:
    """Makes sure once that the key is in the project. `public_key` is an OpenSSH line; None means a throwaway key."""

    def __init__(self, http: HetznerHttp, *, name: str, public_key: str | None) -> None:
        self._http = http
        # A name says nothing of who holds the private half, and what was the operator's would be taken for one that nobody holds.
        # No installation's name has an `@`, so neither has any other key of ours.
        self._name = name if public_key is not None else f"throwaway@{name}"
        self._public_key = public_key
        self._id: int | None = None
        # Many creates start at once; one of them looks, the others wait for what comes of it, a failure too.
        self._look: asyncio.Task[int] | None = None
        self._checking = asyncio.Lock()

    async def key_id(self) -> int:
        """The id of the key in this project; creates it where it is absent."""
        if self._id is not None:
            return self._id
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._ensure())
            # Once all who waited for it have been cut off, nobody else takes note of how it failed.
            self._look.add_done_callback(_note)
        else:
            self._http.refuse_if_silent()
        # Whoever is cut off leaves the look to the others.
        self._id = found = await asyncio.shield(self._look)
        return found

    async def forget_if_gone(self, key_id: int) -> bool:
        """Look whether the key was removed behind our back; True when it was, and then the next create makes it again.

        `key_id` is what the caller was refused with. Another caller may have found out first, and the key have another id by now.
        """
        async with self._checking:
            if self._id != key_id:
                return True
            if any(key.id == key_id for key in await self._list(name=None)):
                return False
            self._id = None
            return True

    async def aclose(self) -> None:
        """End a look that nobody waits for any more."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])

    async def _ensure(self) -> int:
        named = await self._list(name=self._name)
        if (found := self._match(named)) is not None:
            return found.id
        # The operator changed the key: the old one stays for the servers that have it, ours gets a name of its own.
        name = f"{self._name}-{_short_digest(self._public_key)}" if named and self._public_key else self._name
        try:
            return await self._create(name)
        except ProviderNameTaken:
            # Another worker was faster, or the same key is there under another name.
            found = self._match(await self._list(name=None))
        except ProviderOutcomeUnknown as unknown:
            # No server was asked for yet, so for the caller nothing is unknown: the next try finds the key or makes it.
            raise ProviderRetry(unknown.code, unknown.correlation_id) from None
        if found is None:
            raise ProviderRetry("ssh_key_moved")
        return found.id

    def _match(self, keys: list[WireKey]) -> WireKey | None:
        """Ours: the same key material; or, when any key will do, the one of our name."""
        for key in keys:
            if (
                key.name == self._name
                if self._public_key is None
                else _material(key.public_key) == _material(self._public_key)
            ):
                return key
        return None

    async def _create(self, name: str) -> int:
        body = {"name": name, "public_key": self._public_key or _throwaway_public_key()}
        return (await self._http.change("POST", "ssh_keys", ONE_KEY, body)).ssh_key.id

    async def _list(self, *, name: str | None) -> list[WireKey]:
        query = {} if name is None else {"name": name}
        pages = await all_pages(self._http, "ssh_keys", KEY_PAGE, query, pages_max=KEY_PAGES_MAX)
        return [key for page in pages for key in page.ssh_keys]


def _note(look: asyncio.Task[int]) -> None:
    if not look.cancelled():
        look.exception()


def _material(public_key: str) -> tuple[str, ...]:
    """Type and key without the comment, which providers change at will."""
    return tuple(public_key.split()[:2])


def _short_digest(public_key: str | None) -> str:
    return hashlib.sha256(" ".join(_material(public_key or "")).encode()).hexdigest()[:8]


def _throwaway_public_key() -> str:
    public_key = Ed25519PrivateKey.generate().public_key()
    return public_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
