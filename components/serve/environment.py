"""The packages that a detector needs to answer, wherever it is served: a registered version names them all."""

import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from components.stage import StageError

PACKAGES = (
    'c2pa-python; sys_platform != "win32"',  # for which it has no wheels
    "mlflow",
    "numpy",
    "onnxruntime",
    "pandas",
    "pillow",
    "pillow-heif",
    "pyyaml",
    "sd-parsers",
    "threadpoolctl",
)
"""What is imported on the way from `components.serve.pyfunc` to an answer."""

_PLATFORMS = {
    "linux": {"platform_system": "Linux", "os_name": "posix"},
    "darwin": {"platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "win32": {"platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


def pinned(names: Iterable[str]) -> list[str]:
    """Requirements of packages and of all that these need, at the versions that are installed here.

    With less, an environment that is made a year later would hold other versions than the detector was judged with.
    What only some platforms need is asked for on these alone. The version of a package that another one refuses is left
    to the installer: no environment could be made with both.

    Args:
        names: of packages that are installed, and where each is needed if not everywhere.

    Returns:
        `name==version`, sorted; without local labels (`+cpu`), which no public index knows.

    Raises:
        StageError: one of `names` isn't installed.
    """
    asked = [Requirement(name) for name in names]
    needed = {system: _needed(asked, {"sys_platform": system, **rest}) for system, rest in _PLATFORMS.items()}
    found = []
    for name in sorted(set().union(*needed.values())):
        systems = [system for system in needed if name in needed[system]]
        only = " or ".join(f'sys_platform == "{system}"' for system in systems)
        version = Version(distribution(name).version)
        agreed = all(allowed.contains(version, prereleases=True) for s in systems for allowed in needed[s][name])
        found.append(
            name + (f"=={version.public}" if agreed else "") + (f"; {only}" if len(systems) < len(needed) else "")
        )
    return found


def _needed(asked: Sequence[Requirement], platform: dict[str, str]) -> dict[str, list[SpecifierSet]]:
    """The installed ones of all packages that some need on a platform, each with the versions that others allow."""
    needed: dict[str, list[SpecifierSet]] = {}
    followed: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in asked]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({**platform, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # another platform's, or else nothing that was asked for
            if requirement in asked and platform["sys_platform"] == sys.platform:
                raise StageError(f"{name} is not installed, and serving needs it; `pip install {name}`") from None
            continue
        needed.setdefault(name, []).append(requirement.specifier)
        for more in {"", *requirement.extras} - {of for whose, of in followed if whose == name}:
            followed.add((name, more))
            todo += [(Requirement(line), more) for line in package.requires or ()]
    return needed
