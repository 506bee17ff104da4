"""`python -m hydracore.agent --root DIR`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# structlog and httpx import these, if they are installed, for colourful terminals. An agent has no terminal, and
# importing them takes a quarter of its start. With None in `sys.modules` the import fails, which both libraries handle.
for _name in ("rich", "pygments"):
    sys.modules.setdefault(_name, None)  # pyright: ignore[reportArgumentType] - see above

from hydracore.agent.main import run  # noqa: E402 - after the lines above


def main() -> int:
    parser = argparse.ArgumentParser(prog="hydracore.agent", description="The HydraCore agent of one VPS.")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where etc/ and var/lib/ are (default: /)")
    return run(root=parser.parse_args().root)


if __name__ == "__main__":
    sys.exit(main())
