"""Which detector answers: the champion, another version, or the reference until there is one."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components import networks, tracking
from components.params import load
from components.serve import files, reference
from components.serve.files import Files
from components.serve.reference import VERSION as REFERENCE


def version(asked: str | None) -> str:
    """The number of the version that answers: the one asked for, the champion's, or `REFERENCE`, which it says."""
    number = asked or champion()
    if number:
        return number
    print(
        "there is no champion yet (`trueframe run` trains one): the reference detector answers; "
        f"{reference.FOLDER}/*/model_card.md says what it was trained on and how often it is wrong",
        file=sys.stderr,
    )
    return REFERENCE


def champion() -> str | None:
    """The champion's number, where there is one.

    Raises:
        StageError: the settings are wrong, also where nothing is registered yet.
    """
    begun = tracking.begun()
    if not (begun or Path("params.yaml").exists()):
        return None
    model = load().register_.model
    if not begun:
        return None
    from components.register.registry import Registry

    return Registry(model).champion()


def name(number: str) -> str:
    """Of a version, as it stands in a sentence."""
    return "the reference detector" if number == REFERENCE else f"{load().register_.model} version {number}"


@contextlib.contextmanager
def found(number: str) -> Iterator[list[Files]]:
    """A version's files, for a while; of the reference one for each range of sizes.

    Raises:
        StageError: there is no such version, or its files are gone or others than those that were registered.
    """
    if number == REFERENCE:
        yield files.references()
        return
    from components.register.registry import Registry

    with tempfile.TemporaryDirectory(prefix="trueframe-") as folder:
        yield [Files.logged(Registry(load().register_.model).fetch(number, Path(folder)))]


def detector(number: str) -> Any:
    """A version's detector at work."""
    if number == REFERENCE:
        networks.load_keras()
        return reference.Reference()
    from components.register.registry import Registry

    return Registry(load().register_.model).load(number)
