"""Reads all settings from environment variables into one frozen record.

The variable `HYDRACORE_X_Y` sets the field `x_y`. An absent or empty variable means the default, except
that `database_role` may be empty. The default `""` means that no text was given. A part names the
settings that it requires (`require=`). All problems are reported at once.
"""

import binascii
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from events.master_keys import MasterKeys
from hydracore import base64url, store_urls
from hydracore import setting_types as t
from hydracore.hosts import is_loopback

PREFIX: Final = "HYDRACORE_"

#: The catalogue of regions, tiers and presets that comes with the package.
PACKAGED_CATALOGUE: Final = Path(__file__).parent / "catalogue.toml"

#: What each part refuses to start without.
API_NEEDS: Final = ("database_url", "redis_url", "master_key", "jwt_secret")
RELAY_NEEDS: Final = ("database_url", "redis_url")
WORKER_NEEDS: Final = ("database_url", "redis_url", "master_key", "public_url")
DATABASE_NEEDS: Final = ("database_url",)
TOKEN_NEEDS: Final = ("jwt_secret",)
SEAL_NEEDS: Final = ("database_url", "seal_key")
MASTER_KEY_NEEDS: Final = ("database_url", "master_key")
ERASURE_NEEDS: Final = ("database_url", "erasure_file")

#: Never printed, neither by `repr` nor in a problem line.
SECRET_FIELDS: Final = frozenset(
    {
        "database_url",
        "redis_url",
        "master_key",
        "master_keys_former",
        "jwt_secret",
        "cloudsim_token",
        "model_api_key",
        "seal_key",
    }
)

#: Paths, which may be relative to the directory that the program was started in.
PATH_FIELDS: Final = frozenset({"catalogue", "seal_file", "erasure_file"})

#: Paths that begin with a slash are appended to these, so that slashes at their ends are removed.
_ROOT_URLS: Final = frozenset({"public_url", "cloudsim_url", "model_base_url", "telegram_base_url"})
#: These are checked with `urlsplit`, as their users parse them. Database URLs are parsed by libpq, and
#: may have several hosts.
_URLS: Final = _ROOT_URLS | {"redis_url"}

#: How often a statement is executed before it is prepared: psycopg's default.
PREPARE_AFTER: Final = 5


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One installation's settings. Times are seconds. `repr` hides secrets."""

    #: Where the log and the read tables live.
    database_url: t.DatabaseUrl = ""
    #: Where wake-ups travel; never holds truth.
    redis_url: t.RedisUrl = ""
    #: Wraps the per-customer keys; 32 bytes once decoded.
    master_key: t.Key32 = b""
    #: Former master keys. What was encrypted with them or derived from them stays valid. Nothing new is made with them.
    master_keys_former: t.FormerMasterKeys = ()
    #: Signs and checks bearer tokens.
    jwt_secret: t.JwtSecret = ""
    #: The address that agents call, without a slash at its end.
    public_url: t.HttpUrl = ""
    #: Regions, tiers and presets, as TOML.
    catalogue: Path = PACKAGED_CATALOGUE
    #: Labels our servers at a provider; two installations in one project must differ.
    installation: t.LabelValue = "hydracore"
    #: The role that connections switch to; empty keeps the login role.
    database_role: t.RoleName = "hydracore_app"
    #: Whether statements stay prepared in the database. Must be false behind a pooler that does not support that.
    database_prepared: t.YesOrNo = True
    #: Sent with every server that is created, so that the provider makes no root password.
    ssh_public_key: t.SshPublicKey = ""
    api_host: t.Host = "127.0.0.1"
    api_port: t.Port = 8080
    #: A second port of the API, for agents: they keep their `public_url`, which can stay when `api_port` changes.
    api_port_for_agents: t.SecondPort = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: A server that is not ready after this long is given up, and the next attempt begins.
    boot_timeout_s: t.Seconds = 900
    #: How long each step of a call to a provider may take.
    provider_timeout_s: t.ProviderTimeout = 10
    #: How often an agent reports, and when its silence counts as late and as lost.
    heartbeat_interval_s: t.HeartbeatInterval = 15
    heartbeat_late_s: t.Seconds = 45
    heartbeat_lost_s: t.Seconds = 90
    #: How often providers and log are compared, and how old a stray server must be to be removed.
    sweep_interval_s: t.Seconds = 60
    orphan_grace_s: t.Seconds = 900
    #: After this long without progress, a teardown logs a warning.
    teardown_alarm_s: t.Seconds = 900
    #: How long a freed address is kept unused before another instance gets it.
    address_quarantine_s: t.Seconds = 3600
    #: How long a one-time enrol token is valid.
    enrol_ttl_s: t.Seconds = 3600
    worker_threads: t.Threads = 32
    body_max_bytes: t.BodyBytes = 65_536
    #: The most requests of one user or API key per minute; 0: no limit.
    rate_limit_per_minute: t.RequestsPerMinute = 6_000
    #: The origins of pages that may use the API from a browser.
    cors_origins: t.Origins = ()
    #: The embedded provider: its root URL (the Hetzner API is below /v1) and its token.
    cloudsim_url: t.HttpUrl = ""
    cloudsim_token: t.ApiToken = ""
    #: The models that agents use: the base URL of an OpenAI-compatible API, such as
    #: https://api.openai.com/v1, and its key. Agents receive both with their secrets.
    model_base_url: t.HttpUrl = ""
    model_api_key: t.ApiToken = ""
    #: Where agents find Telegram's bot API.
    telegram_base_url: t.HttpUrl = "https://api.telegram.org"

    #: Signs the seals of the log: the seed of an Ed25519 key, 32 bytes once decoded. Without it there are no seals.
    seal_key: t.Key32 = b""
    #: The public keys of the seal keys before it, oldest first. No seal may be signed by an older key
    #: than the seal before it.
    seal_keys_former: t.FormerKeys = ()
    #: The file in which the relay keeps a copy of every seal, one JSON document per line; best on
    #: another machine's disk.
    seal_file: t.WritableFile = None
    seal_interval_s: t.Seconds = 60
    #: The file that lists erased customers, one JSON document per line. It is never restored from a backup.
    erasure_file: t.WritableFile = None

    @property
    def prepare_threshold(self) -> int | None:
        """psycopg's `prepare_threshold` for connections outside a pool. None: nothing is prepared."""
        return PREPARE_AFTER if self.database_prepared else None

    @property
    def master_keys(self) -> MasterKeys:
        """The present and the former master keys. Only for parts that require `master_key`."""
        return MasterKeys(self.master_key, self.master_keys_former)

    @property
    def is_public_url_unencrypted(self) -> bool:
        """Whether agents' calls, whose answers hold secrets, cross a network unencrypted."""
        parts = urlsplit(self.public_url)
        return parts.scheme == "http" and not is_loopback(parts.hostname or "")

    def __repr__(self) -> str:
        shown = (f"{name}={_shown(name, getattr(self, name))}" for name in self.__struct_fields__)
        return f"Settings({', '.join(shown)})"


class SettingsError(Exception):
    """The environment does not make a usable `Settings`. `problems`: one line each, saying what to do."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(environ: Mapping[str, str], *, require: Collection[str] = ()) -> Settings:
    """Read the settings of `environ`; `require` names the fields that must be given. Raises `SettingsError`."""
    values: dict[str, object] = {}
    problems: list[str] = []
    for field in msgspec.structs.fields(Settings):
        raw = environ.get(PREFIX + field.name.upper())
        if raw is None or (raw == "" and field.name != "database_role"):
            if field.name in require:
                problems.append(f"{PREFIX}{field.name.upper()} is missing: set it to {_expected(field.type)}")
            continue
        try:
            values[field.name] = msgspec.convert(_parsed(field.name, raw), field.type, strict=False)
            if field.name in require:
                _check_store_url(field.name, raw)
        except (msgspec.ValidationError, ValueError):
            got = "" if field.name in SECRET_FIELDS else f", not {raw!r}"
            problems.append(f"{PREFIX}{field.name.upper()} must be {_expected(field.type)}{got}")
    assert set(require) <= {field.name for field in msgspec.structs.fields(Settings)}
    settings = Settings(**values)  # pyright: ignore[reportArgumentType] - converted above, field by field
    problems.extend(_contradictions(settings))
    if problems:
        raise SettingsError(tuple(problems))
    return settings


def variable_name(field: str) -> str:
    """The environment variable of a field."""
    assert field in Settings.__struct_fields__
    return PREFIX + field.upper()


def decode_key(text: str) -> bytes:
    """The bytes of a key in base64url, padded or not. Raises `binascii.Error`."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+={0,2}", text):
        raise binascii.Error
    return base64url.decode(text.rstrip("="))


def _parsed(name: str, raw: str) -> object:
    """`raw` in a form that `msgspec.convert` takes for the field's type. Raises `ValueError` where it cannot be parsed.

    Keys are decoded here: they are in base64url (RFC 4648, section 5), and msgspec decodes base64 (section 4).
    """
    if name in _URLS:
        # `port` raises `ValueError` where it is no number: a slash in a password makes a part of that
        # look like the port.
        parts = urlsplit(raw)
        _ = parts.port
        if name in _ROOT_URLS and not parts.hostname:
            raise ValueError
    if name == "api_host":
        _ = raw.encode("idna")  # As it will be when it is looked up.
    if name in {"master_key", "seal_key"}:
        return decode_key(raw)
    if name in {"master_keys_former", "seal_keys_former"}:
        return [decode_key(key.strip()) for key in raw.split(",") if key.strip()]
    if name in PATH_FIELDS:
        return Path(raw)
    if name in _ROOT_URLS:
        return raw.rstrip("/")
    if name == "cors_origins":
        # As browsers write them: in lower case, and without the slash that people add.
        return [origin.strip().rstrip("/").lower() for origin in raw.split(",") if origin.strip()]
    return raw


def _check_store_url(name: str, raw: str) -> None:
    """Check the URL of a required store with the store's client library. Raises `ValueError`."""
    if name == "database_url":
        store_urls.check_database_url(raw)
    elif name == "redis_url":
        store_urls.check_redis_url(raw)


def _contradictions(settings: Settings) -> Iterator[str]:
    """Problems of several settings together, or with files on the disk."""
    if not settings.heartbeat_interval_s < settings.heartbeat_late_s < settings.heartbeat_lost_s:
        yield (
            "HYDRACORE_HEARTBEAT_INTERVAL_S, HYDRACORE_HEARTBEAT_LATE_S and HYDRACORE_HEARTBEAT_LOST_S must be in ascending "
            f"order, not {settings.heartbeat_interval_s:g}, {settings.heartbeat_late_s:g}, {settings.heartbeat_lost_s:g}"
        )
    if settings.catalogue != PACKAGED_CATALOGUE and not _is_file(settings.catalogue):
        yield f"HYDRACORE_CATALOGUE must be the path of a TOML file; there is no readable file at {str(settings.catalogue)!r}"


def _is_file(path: Path) -> bool:
    """Whether `path` is a file. False where we may not look."""
    try:
        return path.is_file()
    except OSError:
        return False


def _expected(of: object) -> str:
    """What a value of the type must be, in words."""
    for meta in getattr(of, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    choices = getattr(of, "__args__", ())
    return f"one of {', '.join(choices)}" if choices else "a text"


def _shown(name: str, value: object) -> str:
    return "'***'" if name in SECRET_FIELDS and value else repr(value)
