"""Which detectors answer: the champion and, for what it wasn't judged on, the reference detectors; or one version."""

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components import integrity, registered, tracking
from components.params import load
from components.serve import reference
from components.serve.cascade import Cascade
from components.serve.files import Files
from components.serve.reference import VERSION as REFERENCE
from components.stage import StageError


def version(asked: str | None) -> str:
    """The number of the version that answers: the one asked for, the champion's, or `REFERENCE`, which it says."""
    number = asked or champion()
    if number:
        return number
    print(
        "there is no champion yet (`trueframe run` trains one, `trueframe promote` chooses one): the reference "
        f"detector answers; {reference.FOLDER}/*/model_card.md says what it was trained on and how often it is wrong",
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
    return registered.champion(model) if begun else None


def name(number: str) -> str:
    """Of a version, as it stands in a sentence."""
    return reference.title(number) or f"{load().register_.model} version {number}"


@contextlib.contextmanager
def found(number: str, *, networks: bool = False, fast: bool = False) -> Iterator[list[Files]]:
    """A version's files, for a while; of the reference one for each range of sizes.

    Args:
        number: of the version.
        networks: whether its Keras networks are wanted too, where its run keeps them.
        fast: whether of the reference detectors the fast ones are enough.

    Raises:
        StageError: there is no such version, or its files are gone or others than those that were registered.
    """
    if reference.title(number):
        yield [one.files for one in references(number, fast=fast)]
        return
    with tempfile.TemporaryDirectory(prefix="trueframe-") as folder:
        model = load().register_.model
        files = Files.logged(registered.fetch(model, number, Path(folder, "model")))
        if networks:
            from components.register.registry import Registry

            files = replace(files, networks=Registry(model).networks(number, Path(folder, "run")))
        yield [files]


def detector(number: str, *, fast: bool = False) -> Any:
    """A version's detector at work, by itself; of `REFERENCE` all of them, or the fast ones."""
    if reference.title(number):
        return Cascade(references(number, fast=fast))
    return registered.load(load().register_.model, number)


def together(number: str, *, fast: bool = False) -> Cascade:
    """The champion at work, and the reference detectors, or the fast ones, for what it wasn't judged on."""
    own = detector(number, fast=fast)
    return own if number == REFERENCE else Cascade([own, *reference.beside(fast=fast)])


def quickly(number: str) -> Cascade:
    """As `together`, with the fast reference detectors."""
    return together(number, fast=True)


@dataclass(frozen=True)
class Who:
    """Who is asked.

    Attributes:
        number: of the version, or `REFERENCE`.
        alone: whether it was asked for by its number, so that it answers by itself.
        fast: whether of the reference detectors the fast ones are asked.
    """

    number: str
    alone: bool = False
    fast: bool = False

    @classmethod
    def of(cls, asked: str | None, *, fast: bool = False) -> "Who":
        """The version asked for; else the champion, or the reference detectors while there is none."""
        return cls(version(asked), alone=asked is not None, fast=fast)

    @property
    def load(self) -> Callable[[str], Any]:
        """Gives the detector of `number`; importable by name."""
        is_one = self.alone and self.number != REFERENCE
        return detector if is_one else quickly if self.fast else together

    def identity(self) -> str:
        """Equal only while the same files answer: versions keep their numbers in another registry, and the reference
        detectors their names when they get better.
        """
        own = None
        if reference.title(self.number):
            beside = references(self.number, fast=self.fast)
        else:
            model = load().register_.model
            own = model, registered.sums(model, self.number)
            beside = [] if self.alone else reference.beside(fast=self.fast)
        return json.dumps([self.number, own, [integrity.listed(one.files.card.parent) for one in beside]])

    def said(self, answered: Counter[str]) -> str | None:
        """What the champion is for, where others answered in its place; null where none did.

        Args:
            answered: how many pictures each version answered.
        """
        others = {title: n for version, n in sorted(answered.items()) if (title := reference.title(version))}
        if self.alone or self.number == REFERENCE or not others:
            return None
        with found(self.number) as (files,):
            scope = files.scope
        n, total = sum(others.values()), answered.total()
        by = " and ".join(f"{title} ({count:,})" if len(others) > 1 else title for title, count in others.items())
        return (
            f"{name(self.number)}, the champion, was judged on pictures of {scope}: {n:,} of {total:,} pictures are of "
            f"another size or unlike those, and were answered by {by}"
        )


def references(number: str, *, fast: bool = False) -> list[reference.Reference]:
    """All reference detectors, or the fast ones, or the one that is named.

    Raises:
        StageError: there is none of that name.
    """
    known = reference.references()
    named = [one for one in known if number == one.version or (number == REFERENCE and (one.is_fast or not fast))]
    if not named:
        raise StageError(f"there is no {number}; there are {', '.join(one.version for one in known)}")
    return named
