"""The configuration that the agent runs: the newest one that it got, in whichever way, also after a restart.

If the control plane wants an older version to run, as after its restore, the agent fetches it. A push may be late, so
an older version that is pushed is not adopted; the answer to a fetch is what counts now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn
from uuid import UUID

import msgspec
import structlog

from hydracore.agent import messages as m
from hydracore.agent.control_plane import BadAnswer, Conflict, ControlPlane, retry_transient
from hydracore.agent.credentials import Credentials
from hydracore.agent.errors import DiskWriteFailed, RuntimeFailed
from hydracore.agent.messages import Level
from hydracore.agent.runtime import DEFAULT_RUNTIME, RuntimeConfig
from hydracore.agent.state import StateDir
from hydracore.documents import masked
from hydracore.json_input import JSON_ERRORS

_log = structlog.get_logger(__name__)

_FILE = "config.json"


class StoredConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`key_id`: that of the agent's secrets when this configuration came."""

    config_version: int
    runtime: dict[str, Any]
    key_id: str | None = None

    def __repr__(self) -> str:
        return f"StoredConfig(config_version={self.config_version})"


class Configuration:
    """Call `start` first; then run `fetch_when_behind`, `adopt` pushes, and `check_wanted_version` after each heartbeat.

    `configure` puts a configuration in force, and raises `RuntimeFailed` for one that cannot be used. If that one was
    not pushed, `report` gets the reason.
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
        #: What is on disk. It differs from `_current` if the disk refused that.
        self._stored: StoredConfig | None = None
        self._key_id: str | None = None
        #: The version that the latest heartbeat's answer named, and the latest version that could not be used.
        self._wanted_version: int | None = None
        self._refused_version: int | None = None
        self._behind = asyncio.Event()
        self._is_fetching = False

    @property
    def version(self) -> int:
        assert self._current is not None, "there is no configuration yet"
        return self._current.config_version

    def masked_document(self) -> dict[str, Any]:
        """The document in force, for people: secrets masked."""
        assert self._current is not None, "there is no configuration yet"
        return masked(self._current.runtime)

    def start(self, secrets: m.Secrets) -> None:
        """Start with the configuration on disk or with that of `secrets`, whichever is newer. If the latter is newer
        and cannot be used, the one on disk stays."""
        self._stored, self._key_id = self._load(), secrets.key_id
        if self._stored is not None:
            self._put_in_force(self._stored)
        if self._stored is None or _has_newer_config(secrets, self._stored):
            self._adopt_or_report(self.adopt, secrets)

    def adopt_renewed(self, secrets: m.Secrets) -> None:
        """Adopt the configuration that came with new secrets. After a restore of the control plane it may have the
        version of the present one and another content."""
        self._key_id = secrets.key_id
        self._adopt_or_report(self.adopt, secrets)

    def adopt(self, version: int, runtime: dict[str, Any]) -> int:
        """Run with this from now on. If a newer version is in force, that stays, and `fetch_when_behind`
        asks the control plane which of them to run.

        Returns the version in force. It is on disk then, unless the disk refused it: then each heartbeat has it fetched
        and stored again. The same version may come again with another content, such as new prices, which the control
        plane does not count as a change. Raises `RuntimeFailed` if it cannot be used; then the one before stays.
        """
        if self._current is not None and version < self._current.config_version:
            # Either an older push came late, or the control plane was restored and no longer knows the newer version.
            self._behind.set()
            return self._current.config_version
        self._run_and_store(version, runtime)
        return version

    def check_wanted_version(self, version: int) -> None:
        """The control plane wants this version to run. Fetch it if another one runs, or the present one is not on disk.

        A version that was fetched before and could not be used is not fetched again.
        """
        if version != self._wanted_version:
            self._wanted_version = version
            if version != self.version:
                _log.warning("config_drift", wanted=version, running=self.version)
        is_behind = version not in {self.version, self._refused_version} or self._current != self._stored
        if is_behind and not self._is_fetching:
            self._behind.set()

    async def fetch_when_behind(self, credentials: Credentials) -> NoReturn:
        """Fetch the configuration whenever another one may be wanted, and run with that. Raises `Gone`."""
        while True:
            await self._behind.wait()
            # Cleared before the fetch, so that an older version that is pushed meanwhile leads to another fetch.
            self._behind.clear()
            self._is_fetching, before = True, self._current
            fetched = await retry_transient(lambda: self._fetch(credentials))
            self._is_fetching = False
            # A push that came meanwhile may be newer than this answer. Then `adopt` fetches again
            # instead of going back.
            self._adopt_or_report(self._run_and_store if self._current is before else self.adopt, fetched)

    def _adopt_or_report(
        self, take: Callable[[int, dict[str, Any]], object], config: m.Secrets | m.NewestConfig
    ) -> None:
        """Pass `config` to `take`. If it cannot be used, report why; then the one before stays."""
        version = config.config_version
        try:
            take(version, config.runtime)
        except RuntimeFailed as failure:
            # It was reported, so that it is not fetched again as long as the control plane wants this version.
            self._refused_version = version
            _log.warning("configuration_refused", config_version=version, reason=failure.message)
            self._report("error", f"Configuration {version} is not used: {failure.message}")

    def _run_and_store(self, version: int, runtime: dict[str, Any]) -> None:
        """Run with this, whichever version is in force, and store it. Raises `RuntimeFailed`."""
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
        except DiskWriteFailed as refusal:
            # A restart would begin with the one before, until a heartbeat's answer names the version that ought to run.
            _log.warning("configuration_not_stored", config_version=config.config_version, what=refusal.what)
        else:
            self._stored = config

    async def _fetch(self, credentials: Credentials) -> m.NewestConfig:
        request = m.ConfigRequest(boot_id=self._boot_id, config_version=self.version)
        try:
            return await credentials.call_with_key(lambda key: self._control_plane.newest_config(key, request))
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
        except JSON_ERRORS:
            # The control plane has it, too: the secrets bring one, and heartbeats tell whether another ought to run.
            _log.warning("configuration_unreadable", file=_FILE)
            return None


def _has_newer_config(secrets: m.Secrets, stored: StoredConfig) -> bool:
    """Whether the configuration of `secrets` is newer than `stored`. Of one version the later one is newer, which is
    that of `secrets` unless they were here already when `stored` came."""
    if secrets.config_version == stored.config_version:
        return secrets.key_id != stored.key_id
    return secrets.config_version > stored.config_version
