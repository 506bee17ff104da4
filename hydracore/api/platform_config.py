"""`/v1/instances/{id}/platform-config`: skills, channels and integrations, changed field by field.

`advanced` and `channels` are documents that are changed by JSON merge patches (RFC 7396) and sealed as a whole. In
lists, only secrets are sealed. A patch is merged with the state that it is appended to, so that concurrent patches are
not lost.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET

from events.commands import PatchPlatformConfig
from events.state import Instance
from hydracore.api import use_schemas as s
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.config_push import ConfigPusher
from hydracore.api.errors import RequestInvalid
from hydracore.api.operations import operation
from hydracore.api.preconditions import IfMatch
from hydracore.api.runtime_document import RuntimeDocuments
from hydracore.api.size_limits import BODY_BYTES, DOCUMENT_BYTES_MAX, require_within_limits, slug_texts
from hydracore.api.validation import Incoming
from hydracore.api.vault import OpenedConfig, Vault
from hydracore.auth import Principal
from hydracore.catalogue import Catalogue
from hydracore.clock import NowMs
from hydracore.documents import (
    MASK,
    MASK_UNMATCHED,
    VALUES_MAX,
    MasksUnmatched,
    count_values,
    is_same,
    masked,
    merge_patch,
    unmasked,
)
from hydracore.problems import Problem

PATH: Final = "/v1/instances/{instance_id}/platform-config"

_DOCUMENTS: Final[tuple[Literal["advanced", "channels"], ...]] = ("advanced", "channels")
_LISTS: Final[tuple[Literal["integrations", "skills"], ...]] = ("integrations", "skills")


@dataclass(frozen=True, kw_only=True)
class PlatformConfiguration:
    changes: Changes
    vault: Vault
    documents: RuntimeDocuments
    pusher: ConfigPusher
    catalogue: Catalogue
    now_ms: NowMs

    @operation("GET", PATH, "Get platform config", answer=s.PlatformConfig, errors=(403, 404))
    async def get_platform_config(self, who: Principal, instance_id: UUID) -> s.PlatformConfig:
        state = await self.changes.load(who, instance_id)
        return await self._shown(state, "Desired configuration")

    @operation(
        "PATCH",
        PATH,
        "Patch platform config",
        answer=s.PlatformConfig,
        errors=(403, 404, 409, 412),
        body_bytes=BODY_BYTES,
    )
    async def patch_platform_config(
        self,
        who: Principal,
        incoming: Incoming,
        instance_id: UUID,
        body: s.PatchPlatformConfig,
        if_match: IfMatch = None,
    ) -> s.PlatformConfig:
        context = RequestContext(who, incoming, instance_id)
        outcome = await self.changes.change(context, lambda state: self._command(state, body), if_match=if_match)
        done = "Platform configuration updated" if outcome.events else "Nothing to change"
        pushed = await self.pusher.push(outcome.state)
        message = f"{done}. {pushed.message}"
        if isinstance(body.workflow_slugs, list):
            error = self.catalogue.workflow_error(slug_texts(body.workflow_slugs))
            message += f". Note on workflow_slugs: {error}" if error is not None else ""
        return await self._shown(outcome.state, message)

    async def _command(self, state: Instance, body: s.PatchPlatformConfig) -> PatchPlatformConfig:
        """The command for `body` at `state`, without what it does not change.

        Raises `RequestInvalid`.
        """
        opened = await self.vault.open(state)
        # In a thread, because large documents take a while, and all other requests would wait.
        changed = await asyncio.to_thread(_changed_values, body, opened)
        changes: dict[str, Any] = {
            field: await self.vault.seal_document(state, field, changed[field])
            for field in _DOCUMENTS
            if field in changed
        }
        for field in _LISTS:
            if field in changed:
                changes[field] = await self.vault.seal_list(state, changed[field])
        if body.recipe_id is not UNSET:
            changes["recipe_id"] = body.recipe_id
        if body.workflow_slugs is not UNSET:
            changes["workflow_slugs"] = slug_texts(body.workflow_slugs)
        return PatchPlatformConfig(at_ms=self.now_ms(), **changes)

    async def _shown(self, state: Instance, message: str) -> s.PlatformConfig:
        opened: OpenedConfig = await self.vault.open(state)
        shown = await asyncio.to_thread(
            masked,
            {
                "advanced": opened.advanced,
                "channels": opened.channels,
                "integrations": opened.integrations,
                "skills": self.documents.skills(state, opened),
            },
        )
        return s.PlatformConfig(
            **shown,
            instance_id=state.id,
            recipe_id=state.recipe_id,
            workflow_slugs=list(state.workflow_slugs),
            config_version=state.config.version,
            message=message,
        )


def _changed_values(body: s.PatchPlatformConfig, opened: OpenedConfig) -> dict[str, Any]:
    """The documents and lists that `body` changes, with their new values. Raises `RequestInvalid`."""
    for field in (*_DOCUMENTS, *_LISTS):
        if (value := getattr(body, field)) is not UNSET:
            _require_within_limits_masked(field, _merged(field, value, opened), getattr(opened, field))
    changed: dict[str, Any] = {}
    for field, value in _unmasked(body, opened).items():
        document = _merged(field, value, opened)
        if not is_same(document, getattr(opened, field)):
            require_within_limits(field, document)
            changed[field] = document
    return changed


def _merged(field: str, value: Any, opened: OpenedConfig) -> Any:
    if field in _LISTS:
        return value or []
    return {} if value is None else merge_patch(getattr(opened, field), value)


def _require_within_limits_masked(field: str, document: Any, stored: Any) -> None:
    """Raises `RequestInvalid` where `document` is too large whatever its masks stand for. Called before unmasking."""
    if is_same(document, stored):
        return
    encoded = msgspec.json.encode(document)
    # The other characters of a mask are part of the secret, so they count.
    of_masks = len(MASK) * encoded.count(b'"' + MASK.encode())
    if len(encoded) - of_masks > DOCUMENT_BYTES_MAX or count_values(document) > VALUES_MAX:
        require_within_limits(field, document)


def _unmasked(body: s.PatchPlatformConfig, opened: OpenedConfig) -> dict[str, Any]:
    """The given documents and lists, with masks replaced by secrets. Raises `RequestInvalid`."""
    given: dict[str, Any] = {}
    problems: list[Problem] = []
    stored = [getattr(opened, field) for field in (*_DOCUMENTS, *_LISTS)]
    for field in (*_DOCUMENTS, *_LISTS):
        value = getattr(body, field)
        if value is UNSET:
            continue
        try:
            given[field] = unmasked(value, getattr(opened, field), shown_together=stored)
        except MasksUnmatched as error:
            problems += [Problem(("body", field, *path), MASK_UNMATCHED, "value_error") for path in error.paths]
    if problems:
        raise RequestInvalid(problems)
    return given
