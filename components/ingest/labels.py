"""What the folders of a source say of its images."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import PurePosixPath

from components.folders import LeftOut, spelled
from components.ingest.catalogue import Entry, Match, matches
from components.params import Label
from components.stage import StageError


class Labels:
    """The labels of one source's images. What can't be told is remembered, for one error that names all of it.

    A path on which folders say both labels says none. Some words name subjects too (`nature`, `photo`): they count
    only beside a folder that says the other label. What stands around the source is its name rather than a label where
    the folders inside say both.

    Args:
        entry: its rules.
        where: the source, for messages.
        names: gives the paths of all its files; asked at most once, and only where a label depends on others' folders.
        root: what the source itself is called, if that may say a label.
    """

    def __init__(self, entry: Entry, where: str, names: Callable[[], Iterable[str]], root: str = "") -> None:
        self.entry, self.where, self.root = entry, where, root
        self._names = names
        self._known: dict[str, dict[Label, Match]] = {}
        self._unknown: Counter[str] = Counter()
        self._torn: Counter[str] = Counter()
        self._linked: list[str] = []

    def of(self, path: str) -> Label | None:
        """The label that the folders of a path say, or the one of all; null if they say none, or both."""
        if self.entry.label:
            return self.entry.label
        said = self._said(path)
        if len(said) == 1:
            return next(iter(said))
        if said:
            self._torn[str(PurePosixPath(path).parent)] += 1
        return None

    def is_left_out(self, path: str) -> bool:
        """Whether an image without a label is known to have none; if not, it is an error to be raised by `check`."""
        if self._said(path):
            return False
        if self.entry.is_unlabelled(f"{self.root}/{path}"):
            return True
        self._unknown[str(PurePosixPath(path).parent)] += 1
        return False

    def generator(self, path: str) -> str | None:
        """The generator of an image labelled `ai`: the catalogue's, or the folder above the one with the label.

        A folder between the two that says a split is passed over (`Midjourney/train/ai`).
        """
        if not self.entry.generator_from_folder:
            return self.entry.generator
        folder = self._folder(path)
        end = max((match.end for match in self._said(path).values()), default=0)
        splits = {at for match in matches(self.entry.splits, folder) for at in range(match.start, match.end)}
        above = next((at for at in range(end - 2, -1, -1) if at not in splits), None)
        return None if above is None else PurePosixPath(folder).parts[above]

    def hold_together(self, file: LeftOut) -> None:
        """Look whether a link to what is read by another name says another label there."""
        if self.entry.label or file.same_as is None:
            return
        link, own = spelled(file.name), spelled(file.same_as)
        inside = "file" if own.endswith("/") else ""
        one, other = (self._said(path) for path in (f"{link}/{inside}" if inside else link, own + inside))
        if len({*one, *other}) > 1:
            self._linked.append(f"{link!r} is a link to what {own!r} is")

    @property
    def is_all_told(self) -> bool:
        """Whether every label could be told so far."""
        return not (self._torn or self._unknown or self._linked)

    def check(self) -> None:
        """Raise what couldn't be told.

        Raises:
            StageError: folders say both labels, or none.
        """
        if self._torn:
            raise StageError(f"{self.where}: {self._both()}")
        if self._linked:
            raise StageError(
                f"{self.where}: both labels are said of the same files: {', '.join(self._linked[:5])}; nothing was "
                "ingested. Remove one of the two, or say what they are under `labels` of the source in params.yaml"
            )
        if self._unknown:
            raise StageError(f"{self.where}: {self._none()}")

    def _both(self) -> str:
        shown, between = [], []
        for inside, n in self._torn.most_common(5):
            parts = PurePosixPath(self.root, inside).parts
            first, second = sorted(self._known["/".join(parts)].values(), key=lambda match: match.end)
            one, other = ("/".join(parts[match.start : match.end]) for match in (first, second))
            shown.append(f"{inside} ({n} files: {one!r} says {first.value}, {other!r} says {second.value})")
            between.append("/".join(parts[first.start : second.end]))
        return (
            f"folders that say both labels: {', '.join(shown)}; nothing was ingested. Rename one of the two, or say "
            "what the images are under `labels` of the source in params.yaml: "
            f"`labels: {{{between[0]}: ai}}` or `labels: {{{between[0]}: real}}` (or `label`, if all are the same)"
        )

    def _none(self) -> str:
        shown = ", ".join(f"{folder} ({n} files)" for folder, n in self._unknown.most_common(5))
        rules = {
            label: ", ".join("/".join(rule) for rule in alternatives if rule not in self.entry.weak)
            for label, alternatives in self.entry.labels.items()
        }
        weak = [rule for alternatives in self.entry.labels.values() for rule in alternatives if rule in self.entry.weak]
        beside = f" ({', '.join('/'.join(rule) for rule in weak)} only beside one of the other label)" if weak else ""
        return (
            f"unknown label folder: {shown}; nothing was ingested. Folders that are understood: "
            f"{'; '.join(f'{label}: {words}' for label, words in rules.items())}{beside}. "
            "Rename them, or say what they are under `labels` of the source in params.yaml (or `label`, if all are the "
            "same)"
        )

    def _folder(self, path: str) -> str:
        """The folder of a file, with the source's own name in front."""
        return str(PurePosixPath(self.root, path).parent)

    def _said(self, path: str) -> dict[Label, Match]:
        folder = self._folder(path)
        if folder not in self._known:
            found = list(self._counting(folder))
            if self.root and {match.value for match in found if match.end == 1} and self._both_inside:
                found = [match for match in found if match.end > 1]
            found = [match for match in found if not any(other.covers(match) for other in found)]
            # Of the folders that say the same, the one nearest to the file.
            self._known[folder] = {match.value: match for match in sorted(found, key=lambda match: match.end)}
        return self._known[folder]

    def _counting(self, folder: str) -> Iterator[Match]:
        for match in matches(self.entry.labels, folder):
            if match.rule not in self.entry.weak or self._is_beside_the_other(folder, match):
                yield match

    def _is_beside_the_other(self, folder: str, weak: Match) -> bool:
        parts = PurePosixPath(folder).parts[: weak.end]
        above = "/".join(parts[:-1])
        return any(
            (match.start, match.end) == (weak.start, weak.end)
            and match.value != weak.value
            and match.rule not in self.entry.weak
            for sibling in self._folders[above] - {parts[-1]}
            for match in matches(self.entry.labels, f"{above}/{sibling}" if above else sibling)
        )

    @cached_property
    def _folders(self) -> dict[str, set[str]]:
        """The folders in each folder."""
        found: dict[str, set[str]] = defaultdict(set)
        for folder in {self._folder(name) for name in self._names()}:
            above = ""
            for path in accumulate(PurePosixPath(folder).parts, "{}/{}".format):
                found[above].add(path.rsplit("/", 1)[-1])
                above = path
        return found

    @cached_property
    def _both_inside(self) -> bool:
        """Whether the folders inside the source say both labels."""
        folders = [f"{above}/{name}" for above, inside in self._folders.items() if above for name in inside]
        return len({match.value for folder in folders for match in self._counting(folder) if match.end > 1}) > 1
