"""Each benchmark measures one promise side by side with what a user would do instead, in one run.

With `make bench OTHER=PATH`, a checkout that has its own .venv, some measure that one too.
"""

import os
from pathlib import Path


def other() -> Path | None:
    """The checkout to compare with, where one is named."""
    named = os.environ.get("OTHER")
    return Path(named).resolve() if named else None
