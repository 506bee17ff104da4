"""`python -m tests.cloudsim_program JSON`: runs cloudsim with all options of `serve`, including those that its command lacks."""

import json
import sys
from pathlib import Path

from hydracore.cloudsim.main import run, serve

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    run(serve(home=Path(given.pop("home")), host="127.0.0.1", **given))
