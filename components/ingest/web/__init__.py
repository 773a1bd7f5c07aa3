"""Pages and images on the web, as a list names them: politely, and only from public addresses."""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated
from urllib.parse import urldefrag

from pydantic import AfterValidator, BeforeValidator, ValidationError

from components import parallel
from components.folders import LeftOut
from components.ingest.catalogue import Split
from components.ingest.source import Item, Part, Place
from components.ingest.web import page
from components.ingest.web.fetch import Fetcher
from components.params import Label, Section
from components.stage import StageError

_AHEAD = 32  # lines of the list, or images, that are fetched before the first of them is given


class _Row(Section):
    """A line of the list."""

    url: Annotated[str, AfterValidator(lambda url: urldefrag(url).url)]
    label: Annotated[Label, BeforeValidator(str.lower)]
    generator: str | None = None
    licence: str | None = None
    split: Split | None = None


def seen(place: Place) -> str:
    """Changes whenever the list does. What the pages themselves show by now is not looked at.

    Raises:
        StageError: the list can't be read.
    """
    return hashlib.sha256(_text(place).encode()).hexdigest()


def parts(place: Place) -> Iterator[Part]:
    """One part: the whole list, without what an earlier ingestion covered.

    Raises:
        StageError: the list can't be read, or a line of it is wrong; the message names the line. Reading the part:
            nothing could be fetched, or some addresses didn't answer.
    """
    rules = f"{place.source.private} {place.max_bytes}"
    rows = {hashlib.sha256(f"{row.model_dump_json()} {rules}".encode()).hexdigest(): row for row in _rows(place)}
    new = {name: row for name, row in rows.items() if name not in place.covered}
    # With a limit not all of the list is read, so that nothing can be called covered.
    is_limited = place.source.max_images is not None or place.source.per_generator is not None
    yield Part(seen(place), lambda: _items(place, list(new.values())), () if is_limited else tuple(new))


def _text(place: Place) -> str:
    """The list, or the one address that stands for it."""
    where = place.where.removeprefix("web:")
    if where.lower().startswith(("http://", "https://")):
        return where
    if not where.lower().endswith((".csv", ".txt")):
        raise StageError(f"{where}: neither a .csv nor a .txt; a list of web addresses is one of them")
    try:
        return Path(where).expanduser().read_text("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise StageError(f"{where}: no list of web addresses in UTF-8 ({error})") from None


def _rows(place: Place) -> list[_Row]:
    rows: dict[str, tuple[str, _Row]] = {}
    for line, said in _lines(place):
        row = _row(line, said, place)
        first, known = rows.setdefault(row.url, (line, row))
        if known.label != row.label:
            raise StageError(f"{line}: {row.url} is {row.label} here, but {known.label} in {first}")
    if not rows:
        raise StageError(f"{place.where}: lists no address")
    return [row for _, row in rows.values()]


def _lines(place: Place) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line's name, and what it says by column."""
    text = _text(place)
    if not place.where.lower().endswith(".csv"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield f"{place.where}, line {number}", {"url": line.strip()}
        return
    reader = csv.DictReader(io.StringIO(text), restkey="values without a column", strict=True)
    try:
        for values in reader:
            said = {name.strip().lower(): str(value or "").strip() for name, value in values.items()}
            if any(said.values()):
                yield f"{place.where}, line {reader.line_num}", {name: value for name, value in said.items() if value}
    except csv.Error as error:
        raise StageError(f"{place.where}, line {reader.line_num}: not CSV ({error})") from None


def _row(line: str, said: dict[str, str], place: Place) -> _Row:
    usual = {
        "label": place.source.label or place.entry.label,
        "generator": place.source.generator or place.entry.generator,
    }
    try:
        return _Row.model_validate({name: value for name, value in (usual | said).items() if value})
    except ValidationError as error:
        column, message = error.errors()[0]["loc"][0], error.errors()[0]["msg"].lower()
        hint = f"; `label` of the source {place.name} in params.yaml may say it for all" if column == "label" else ""
        raise StageError(f"{line}: {column}: {message}{hint}") from None


def _items(place: Place, rows: list[_Row]) -> Iterator[Item | LeftOut]:
    fetcher = Fetcher(place.downloads, place.max_bytes, private=place.source.private)
    given: set[tuple[str, str]] = set()
    for items in parallel.batched(_found(fetcher, rows), _AHEAD):
        fetcher.fetch(item.origin for item in items)
        for item in items:
            answer = fetcher.answer(item.origin)
            if answer and answer.is_page:
                fetcher.skip(item.origin, "a page, not an image")
            elif answer and (item.origin, item.label) not in given:
                given.add((item.origin, item.label))
                yield dataclasses.replace(item, data=answer.data)
    yield from (LeftOut(url, "skipped address") for url in fetcher.skipped)
    if rows:
        _conclude(place, fetcher, len(given))


def _found(fetcher: Fetcher, rows: list[_Row]) -> Iterator[Item]:
    """The images that the list stands for, still without their bytes."""
    for some in parallel.batched(rows, _AHEAD):
        fetcher.fetch(row.url for row in some)
        for row in some:
            answer = fetcher.answer(row.url)
            generator = row.generator if row.label == "ai" else None
            item = Item(None, row.url, row.label, generator, row.split, licence=row.licence)
            if answer and not answer.is_page:
                yield item
            elif answer:
                images, licence = page.read(answer.data or b"", answer.url)
                item = dataclasses.replace(item, page=row.url, licence=row.licence or licence)
                yield from (dataclasses.replace(item, origin=image) for image in images)


def _conclude(place: Place, fetcher: Fetcher, given: int) -> None:
    """Say what was left out; fail if something may still come, or if nothing came."""
    asked, late, skipped = len(fetcher.asked), fetcher.late, fetcher.skipped
    if skipped:
        print(f"{place.name}: {given} images; {len(skipped)} of {asked} addresses skipped", flush=True)
    why = "; ".join(f"{url}: {reason}" for url, reason in islice((late or skipped).items(), 3))
    if late:
        raise StageError(
            f"{place.where}: {len(late)} of {asked} addresses didn't answer ({why}); what was fetched is kept: run the "
            "same command again, without the lines whose addresses stay dead"
        )
    if not given:
        raise StageError(f"{place.where}: no image could be fetched ({why or 'its pages show none'})")
