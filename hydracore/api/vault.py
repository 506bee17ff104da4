"""Decrypts (opens) an instance's configuration and encrypts (seals) its secrets. Nothing else in the API does this."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import msgspec

from events.evolve_use import looks_sealed
from events.keys import Keyring
from events.state import Instance
from events.types import Sealed
from hydracore.audit.history_rendering import ERASED, PARTLY_SEALED_FIELDS, SEALED
from hydracore.documents import mask, masked, replace_secrets

Field = Literal["system_prompt", "customer_facing_prompt", "telegram_bot_token", "advanced", "channels"]
Json = dict[str, Any]

_DOCUMENT: Final = msgspec.json.Decoder(Json)
_DOCUMENTS: Final = frozenset({"advanced", "channels"})
#: Sealed fields that are only shown masked.
_SECRETS: Final = frozenset({"telegram_bot_token", *PARTLY_SEALED_FIELDS})
#: The field name that secrets within lists are bound to when they are sealed.
_LISTS: Final = "platform_lists"


class OpenedConfig(NamedTuple):
    """The sealed part of a configuration, opened. Values that no key opens (any more) are missing."""

    system_prompt: str | None
    customer_facing_prompt: str | None
    telegram_bot_token: str | None
    advanced: Json
    channels: Json
    integrations: list[Any]
    skills: list[Any] | None


class Vault:
    """Seals and opens with the key of the instance's customer."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def open(self, state: Instance) -> OpenedConfig:
        config = state.config
        return OpenedConfig(
            system_prompt=await self._open_text(state, "system_prompt", config.system_prompt),
            customer_facing_prompt=await self._open_text(
                state, "customer_facing_prompt", config.customer_facing_prompt
            ),
            telegram_bot_token=await self._open_text(state, "telegram_bot_token", config.telegram_bot_token),
            advanced=await self._open_document(state, "advanced", config.advanced),
            channels=await self._open_document(state, "channels", config.channels),
            integrations=await self._open_list(state, config.integrations),
            skills=None if config.skills is None else await self._open_list(state, config.skills),
        )

    async def seal(self, state: Instance, field: Field, text: str) -> Sealed:
        """Raises `CustomerErased`."""
        return await self._keyring.seal(text, tenant_id=state.tenant_id, customer_id=state.customer_id, field=field)

    async def seal_document(self, state: Instance, field: Field, document: Json) -> Sealed:
        """Raises `CustomerErased`."""
        return await self.seal(state, field, msgspec.json.encode(document).decode())

    async def seal_list(self, state: Instance, items: list[Any]) -> tuple[Any, ...]:
        """`items` with the secrets in them sealed; the rest stays in clear. Raises `CustomerErased`.

        Texts that look like a sealed text are sealed too: a caller may have copied another customer's sealed text from the
        log to have it opened.
        """
        sealed_here = set[str]()

        async def seal(text: str) -> str:
            sealed = await self._keyring.seal(
                text, tenant_id=state.tenant_id, customer_id=state.customer_id, field=_LISTS
            )
            sealed_here.add(sealed)
            return sealed

        async def seal_copied(text: str) -> str:
            return await seal(text) if looks_sealed(text) and text not in sealed_here else text

        return tuple(await replace_secrets(await replace_secrets(items, seal), seal_copied, secret=True))

    async def show(self, state: Instance, field: str, sealed: str) -> Any:
        """A sealed text from the history of `state` as its owner sees it: opened, with secrets in it masked."""
        try:
            if field in PARTLY_SEALED_FIELDS:
                text = await self._open_list_item(state, sealed)
            else:
                text = await self._open_text(state, field, sealed)
        except ValueError:
            # A text in this form that was not sealed by us. Lists are mostly kept in clear.
            return SEALED
        if text is None:
            return ERASED
        if field in _DOCUMENTS:
            return masked(_DOCUMENT.decode(text))
        return mask(text) if field in _SECRETS else text

    async def _open_text(self, state: Instance, field: str, sealed: str | None) -> str | None:
        if sealed is None:
            return None
        return await self._keyring.open(sealed, tenant_id=state.tenant_id, customer_id=state.customer_id, field=field)

    async def _open_list_item(self, state: Instance, text: str) -> str | None:
        """Open a sealed text of a list. Raises `ValueError` where it only looks sealed."""
        return await self._keyring.unseal(text, tenant_id=state.tenant_id, customer_id=state.customer_id, field=_LISTS)

    async def _open_document(self, state: Instance, field: Field, sealed: Sealed | None) -> Json:
        text = await self._open_text(state, field, sealed)
        return {} if text is None else _DOCUMENT.decode(text)

    async def _open_list(self, state: Instance, items: tuple[Any, ...]) -> list[Any]:
        async def opened(text: str) -> str | None:
            # Decided by the text's form: the names that make it a secret may be sealed themselves. A secret that was
            # stored before its name counted as a secret's is in clear.
            if not looks_sealed(text):
                return text
            try:
                return await self._open_list_item(state, text)
            except ValueError:
                # A text in this form that was stored before such texts were sealed.
                return text

        return await replace_secrets(items, opened, secret=True)
