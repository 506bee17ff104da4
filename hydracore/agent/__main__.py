"""`python -m hydracore.agent --root DIR`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# structlog and httpx import these for colourful terminals when they are there. An agent has no terminal, and they are a
# quarter of its start. None makes their import fail, which both libraries provide for.
for _name in ("rich", "pygments"):
    sys.modules.setdefault(_name, None)  # pyright: ignore[reportArgumentType] - see above

from hydracore.agent.main import run  # noqa: E402 - after the lines above


def main() -> int:
    parser = argparse.ArgumentParser(prog="hydracore.agent", description="The HydraCore agent of one VPS.")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where etc/ and var/lib/ are (default: /)")
    return run(root=parser.parse_args().root)


if __name__ == "__main__":
    sys.exit(main())
