"""The configuration that the agent runs: the newest that it was given, whichever way that came, also after a restart.

Where the control plane says that an older one ought to run, as it does behind a restore, the agent fetches that: what is pushed may
be late, and what is asked for is what counts now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn
from uuid import UUID

import msgspec
import structlog

from hydracore.agent import messages as m
from hydracore.agent.control_plane import BadAnswer, Conflict, ControlPlane, insist
from hydracore.agent.credentials import Credentials
from hydracore.agent.errors import DiskRefuses, RuntimeFailed
from hydracore.agent.messages import Level
from hydracore.agent.runtime import DEFAULT_RUNTIME, RuntimeConfig
from hydracore.agent.state import StateDir
from hydracore.documents import masked
from hydracore.reading import UNREADABLE

_log = structlog.get_logger(__name__)

_FILE = "config.json"


class StoredConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`key_id`: of the latest secrets when it came."""

    config_version: int
    runtime: dict[str, Any]
    key_id: str | None = None

    def __repr__(self) -> str:
        return f"StoredConfig(config_version={self.config_version})"


class Configuration:
    """`begin` with the secrets; then `adopt` what is pushed, and `follow` what the heartbeats tell of.

    `configure` puts one in force and raises `RuntimeFailed` for one that cannot be used. `report` is told of that.
    """

    def __init__(
        self,
        *,
        state: StateDir,
        boot_id: UUID,
        control_plane: ControlPlane,
        configure: Callable[[RuntimeConfig], None],
        report: Callable[[Level, str], object],
    ) -> None:
        self._state = state
        self._boot_id = boot_id
        self._control_plane = control_plane
        self._configure = configure
        self._report = report
        self._current: StoredConfig | None = None
        #: What is on disk; another one than `_current` where the disk did not take that.
        self._stored: StoredConfig | None = None
        self._key_id: str | None = None
        #: The version that heartbeats tell of, and the one that was no use when it came.
        self._wanted: int | None = None
        self._refused: int | None = None
        self._behind = asyncio.Event()
        self._is_fetching = False

    @property
    def version(self) -> int:
        assert self._current is not None, "there is no configuration yet"
        return self._current.config_version

    def shown(self) -> dict[str, Any]:
        """The document in force, for people: secrets masked."""
        assert self._current is not None, "there is no configuration yet"
        return masked(self._current.runtime)

    def begin(self, secrets: m.Secrets) -> None:
        """Start with the newer one of what the secrets brought and what is on disk, or with that on disk where the newer one
        cannot be used."""
        self._stored, self._key_id = self._load(), secrets.key_id
        if self._stored is not None:
            self._put_in_force(self._stored)
        if self._stored is None or _brings_newer(secrets, self._stored):
            self._report_unless(self.adopt, secrets)

    def renew(self, secrets: m.Secrets) -> None:
        """Fresh secrets came, and with them whatever else has changed since the last ones: also another configuration of the same
        version, where the control plane was restored."""
        self._key_id = secrets.key_id
        self._report_unless(self.adopt, secrets)

    def adopt(self, version: int, runtime: dict[str, Any]) -> int:
        """Run with this from now on, unless a newer one is in force: then the control plane is asked which one counts. Returns the
        version that is in force; it is on disk then, unless the disk takes nothing: then that is tried again with each heartbeat.

        The same version may come again with other content: what its maker knows and does not count as a change, such as
        prices. Raises `RuntimeFailed` where it cannot be used; then the one before stays.
        """
        if self._current is not None and version < self._current.config_version:
            # Two pushes may have overtaken each other, or the newer one is of a history that a restore has lost.
            self._behind.set()
            return self._current.config_version
        self._take(version, runtime)
        return version

    def note_wanted(self, version: int) -> None:
        """The control plane says that this version ought to run."""
        if version != self._wanted:
            self._wanted = version
            if version != self.version:
                _log.warning("config_drift", wanted=version, running=self.version)
        is_behind = version not in {self.version, self._refused} or self._current != self._stored
        if is_behind and not self._is_fetching:
            self._behind.set()

    async def follow(self, credentials: Credentials) -> NoReturn:
        """Fetch the configuration whenever another one may be wanted, and run with that. Raises `Gone`."""
        while True:
            await self._behind.wait()
            # Now, so that an older push which comes while it is fetched is a reason to ask again.
            self._behind.clear()
            self._is_fetching, before = True, self._current
            fetched = await insist(lambda: self._fetch(credentials))
            self._is_fetching = False
            # What was pushed meanwhile may be younger than this answer: then the answer to another question is the younger one.
            self._report_unless(self._take if self._current is before else self.adopt, fetched)

    def _report_unless(
        self, taken: Callable[[int, dict[str, Any]], object], config: m.Secrets | m.NewestConfig
    ) -> None:
        """Have `config` taken; what makes that impossible is told of, and the one before stays."""
        version = config.config_version
        try:
            taken(version, config.runtime)
        except RuntimeFailed as failure:
            # Asked for again when it is another one; this one was told of.
            self._refused = version
            _log.warning("configuration_refused", config_version=version, reason=failure.message)
            self._report("error", f"Configuration {version} is not used: {failure.message}")

    def _take(self, version: int, runtime: dict[str, Any]) -> None:
        """Run with this, and keep it. Raises `RuntimeFailed`."""
        config = StoredConfig(config_version=version, runtime=runtime, key_id=self._key_id)
        if config != self._current:
            before = self._current
            self._put_in_force(config)
            if before is not None:
                _log.info("configuration_adopted", config_version=version)
        if config != self._stored:
            self._store(config)

    def _store(self, config: StoredConfig) -> None:
        try:
            self._state.write(_FILE, msgspec.json.encode(config))
        except DiskRefuses as refusal:
            # A restart would go on with the one before, until the heartbeats tell that it is not the newest.
            _log.warning("configuration_not_stored", config_version=config.config_version, what=refusal.what)
        else:
            self._stored = config

    async def _fetch(self, credentials: Credentials) -> m.NewestConfig:
        request = m.ConfigRequest(boot_id=self._boot_id, config_version=self.version)
        try:
            return await credentials.call(lambda key: self._control_plane.newest_config(key, request))
        except Conflict as error:
            raise BadAnswer(error.call, "409") from error

    def _put_in_force(self, config: StoredConfig) -> None:
        kind = str(config.runtime.get("type", DEFAULT_RUNTIME))
        self._configure(RuntimeConfig(type=kind, version=config.config_version, settings=config.runtime))
        self._current = config

    def _load(self) -> StoredConfig | None:
        content = self._state.read(_FILE)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=StoredConfig)
        except UNREADABLE:
            # The control plane has it, too, and heartbeats will tell that ours is not the newest.
            _log.warning("configuration_unreadable", file=_FILE)
            return None


def _brings_newer(secrets: m.Secrets, stored: StoredConfig) -> bool:
    """Of one version, what came later is newer: that of secrets that were not there yet when `stored` came."""
    if secrets.config_version == stored.config_version:
        return secrets.key_id != stored.key_id
    return secrets.config_version > stored.config_version
