"""One directory that holds everything of a local installation: data, logs and secrets."""

import base64
import secrets
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Self

import msgspec

from hydracore.embedded.errors import EmbeddedError, HomeUnusable
from hydracore.embedded.files import lock_directory, write_json

#: Others may pass through a home (PostgreSQL's own account must reach its data) but neither list it nor read what is in it.
HOME_MODE: Final = 0o711

#: The lock file, with the pid of the present or last holder of the home.
LOCK: Final = "lock"


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Secrets and ids of a home, drawn once and kept in `secrets.json`. `home_id` stays when the home is moved."""

    home_id: str
    master_key: str
    jwt_secret: str
    cloudsim_token: str
    database_password: str
    redis_password: str
    tenant_id: str
    admin_id: str
    customer_id: str
    other_customer_id: str
    other_tenant_id: str
    other_admin_id: str
    #: The development tenant's API key; empty until it was made, which needs a running database.
    api_key: str = ""
    #: Empty in homes that are older than seals, until their next start.
    seal_key: str = ""

    def __repr__(self) -> str:
        return f"Secrets(home_id={self.home_id!r}, ...)"

    @classmethod
    def generate(cls) -> Self:
        return cls(
            home_id=uuid.uuid4().hex,
            master_key=_key(),
            jwt_secret=secrets.token_urlsafe(48),
            cloudsim_token=secrets.token_urlsafe(32),
            database_password=secrets.token_urlsafe(32),
            redis_password=secrets.token_urlsafe(32),
            tenant_id=str(uuid.uuid4()),
            admin_id=str(uuid.uuid4()),
            customer_id=str(uuid.uuid4()),
            other_customer_id=str(uuid.uuid4()),
            other_tenant_id=str(uuid.uuid4()),
            other_admin_id=str(uuid.uuid4()),
            seal_key=_key(),
        )


class Home:
    """The layout of the directory. The constructor creates what is missing and changes nothing that exists."""

    def __init__(self, path: Path) -> None:
        """Raises `HomeUnusable`."""
        self.path = path.expanduser().resolve()
        self.logs = self.path / "logs"
        self._lock = self.path / LOCK
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True)
                self.path.chmod(HOME_MODE)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            self._lock.touch(mode=0o600)
        except OSError as error:
            raise HomeUnusable(self.path, error.strerror or str(error)) from None
        self.postgres = self.path / "postgres"
        self.valkey = self.path / "valkey"
        self.cloudsim = self.path / "cloudsim"
        self.modelsim = self.path / "modelsim"
        self.secrets_file = self.path / "secrets.json"
        self.seal_file = self.path / "seals.jsonl"
        self.erasure_file = self.path / "erasures.jsonl"
        self.ports_file = self.path / "ports.json"
        self.dev_file = self.path / "dev.json"
        self.env_file = self.path / "env"

    def lock(self) -> AbstractContextManager[None]:
        """Lock the home exclusively. Raises `HomeInUse`."""
        return lock_directory(self._lock)

    @staticmethod
    def was_locked(path: Path) -> bool:
        """Whether there is a home at `path` that has been locked before."""
        lock = path / LOCK
        return lock.is_file() and lock.stat().st_size > 0

    def secrets(self) -> Secrets:
        """This home's secrets, drawn on the first call.

        Hold the lock. Raises `HomeUnusable`, or `EmbeddedError` if damaged.
        """
        try:
            known = msgspec.json.decode(self.secrets_file.read_bytes(), type=Secrets)
        except ValueError:  # No JSON, or no UTF-8 in it.
            # Drawing new ones would make everything that the old ones protect unreadable.
            raise EmbeddedError(
                f"{self.secrets_file} is damaged: restore it from a backup, or use another --home, or DIR= of make"
            ) from None
        except FileNotFoundError:
            known = Secrets.generate()
            write_json(self.secrets_file, known)
        except OSError as error:
            raise HomeUnusable(self.path, f"{self.secrets_file.name}: {error.strerror}") from None
        if not known.seal_key:
            known = msgspec.structs.replace(known, seal_key=_key())
            write_json(self.secrets_file, known)
        return known

    def save_api_key(self, api_key: str) -> None:
        """Remember the API key that was made for the development tenant."""
        write_json(self.secrets_file, msgspec.structs.replace(self.secrets(), api_key=api_key))


def _key() -> str:
    """32 random bytes in base64url, the form of keys in settings."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
