"""`python -m benchmarks [NAME...]`: run all, or those named, and print their tables."""

import importlib
import os
import platform
import sys

NAMES = ("check", "pipeline", "training", "serving", "page", "data", "validation", "equalise", "engines", "scale")


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            raise SystemExit(f"no benchmark is called {name!r}; there are {', '.join(NAMES)}")
        print(importlib.import_module(f"benchmarks.{name}").run(), flush=True)


if __name__ == "__main__":
    main()
