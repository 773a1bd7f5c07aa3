"""What code imports, as its text says: every `import`, those within functions too."""

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.utils import canonicalize_name


def closure(root: Path, *start: Path) -> dict[str, set[Path]]:
    """Packages that files import, by themselves and by way of other code under a folder.

    Args:
        root: the folder that their own packages lie in.
        start: the files.

    Returns:
        For each top-level name that is neither under `root` nor of the standard library, the files that import it.
    """
    found: dict[str, set[Path]] = {}
    todo, seen = list(start), set(start)
    while todo:
        file = todo.pop()
        for name in _imported(file, root):
            top = name.partition(".")[0]
            own = _files(root, name)
            if not own and top not in sys.stdlib_module_names:
                found.setdefault(top, set()).add(file)
            todo += own - seen
            seen |= own
    return found


def distributions(name: str) -> set[str]:
    """Which installed distributions hold a top-level package, by their canonical names."""
    return {canonicalize_name(one) for one in _distributions().get(name, ())} or {name}


_distributions = cache(importlib.metadata.packages_distributions)


def _imported(file: Path, root: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                raise AssertionError(f"{file}: a relative import, which nobody follows here")
            case ast.Call(func=ast.Name("import_module"), args=[ast.JoinedStr(values=[_, ast.Constant(str(tail))])]):
                yield ".".join(file.parent.relative_to(root).parts) + tail  # of f"{__name__}.layers"


def _files(root: Path, name: str) -> set[Path]:
    """The files that importing a name runs; none if it isn't under the folder."""
    found, folder = set(), root
    for part in name.split("."):
        for file in (folder / f"{part}.py", folder / part / "__init__.py"):
            if file.is_file():
                found.add(file)
        folder = folder / part
    return found
