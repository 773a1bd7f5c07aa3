"""Which detector answers: the champion, another version, or the reference until there is one."""

import sys
from typing import Any

from components import networks, tracking
from components.params import load
from components.serve import files, reference
from components.serve.files import Files
from components.serve.reference import VERSION as REFERENCE
from components.stage import StageError


def version(asked: str | None) -> str:
    """The number of the version that answers: the one asked for, the champion's, or `REFERENCE`, which it says."""
    model = load().register_.model
    if asked is not None:
        return asked
    if tracking.begun():
        from components.register.registry import CHAMPION, Registry

        champion = Registry(model).alias(CHAMPION)
        if champion:
            return champion.number
    print(
        "there is no champion yet (`trueframe run` trains one): the reference detector answers; "
        f"{reference.FOLDER}/*/model_card.md says what it was trained on and how often it is wrong",
        file=sys.stderr,
    )
    return REFERENCE


def name(number: str) -> str:
    """Of a version, as it stands in a sentence."""
    return "the reference detector" if number == REFERENCE else f"{load().register_.model} version {number}"


def found(number: str) -> list[Files]:
    """A version's files; of the reference one for each range of sizes.

    Raises:
        StageError: there is no such version, or its files are gone.
    """
    if number == REFERENCE:
        return files.references()
    from components.register.registry import Registry

    registry = Registry(load().register_.model)
    if number not in {v.number for v in registry.versions()}:
        raise StageError(f"{registry.name} has no version {number}; `trueframe models` lists those there are")
    return [Files.logged(registry.download(number))]


def detector(number: str) -> Any:
    """A version's detector at work."""
    if number == REFERENCE:
        networks.load_keras()
        return reference.Reference()
    from components.register.registry import Registry

    return Registry(load().register_.model).load(number)
