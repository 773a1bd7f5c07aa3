"""`trueframe check`: what is to be checked, where its rows go, and what the exit code says."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import folders
from components.folders import spelled
from components.serve import check, reference
from components.serve.check import Journal, Judge, Row
from components.stage import StageError
from flows.answering import Who

REAL, AI, ERROR = 0, 1, 2
"""Exit codes: nothing is `ai`; something is; something could not be judged."""
_MAX_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Wanted:
    """What to do with the verdicts.

    Attributes:
        outputs: files to write, by their suffix.
        heatmaps: folder for pictures of the evidence.
        threshold: in place of the fitted one.
        jobs: processes.
        is_strict: whether `uncertain` counts as `ai` for the exit code.
    """

    outputs: Sequence[Path] = ()
    heatmaps: Path | None = None
    threshold: float | None = None
    jobs: int = 1
    is_strict: bool = False


def run(asked: Iterable[str], place: Callable[[Path], Path], who: Who, wanted: Wanted) -> int:
    """Check what was asked for, and return the exit code.

    Args:
        asked: files, folders, addresses, and `-` for a list of them on stdin.
        place: from a path as it was given to one that can be opened here.
        who: is asked.
        wanted: what to do with the rows.

    Raises:
        StageError: something that was asked for isn't there.
    """
    left_out: Counter[str] = Counter()
    names = _names(asked, place, left_out)
    judge = Judge(who.load, who.number, fetch, wanted.threshold)
    if wanted.jobs > 1:
        share = str(max(1, (os.cpu_count() or 1) // wanted.jobs))
        os.environ.setdefault("OMP_NUM_THREADS", share)
    counts: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    if not wanted.outputs:
        for rows in check.check(judge, names, wanted.heatmaps, wanted.jobs):
            for row in rows:
                _count(counts, answered, row)
                print(_sentence(row))
        if left_out:
            print(folders.counted(left_out))
        _say(who, answered)
        return _code(counts, wanted.is_strict)
    identity = json.dumps([who.identity(), wanted.threshold, str(wanted.heatmaps)])
    with Journal(wanted.outputs[0], identity) as journal:
        known = {name for name in names if journal.knows(name)}
        if known:
            print(f"{len(known):,} of {len(names):,} are known from before", flush=True)
        for rows in check.check(judge, names, wanted.heatmaps, wanted.jobs, known.__contains__):
            journal.add([{column: row[column] for column in check.COLUMNS} for row in rows])
        for path in wanted.outputs:
            check.write(journal.rows(names), path)
        journal.end()
        for row in journal.rows(names):
            _count(counts, answered, row)
    others = f"; {folders.counted(left_out)}" if left_out else ""
    tally = ", ".join(f"{counts[v]:,} {v}" for v in ("ai", "real", "uncertain"))
    print(f"{len(names):,} files: {tally}, {counts['error']:,} errors{others}")
    _say(who, answered)
    return _code(counts, wanted.is_strict)


def fetch(url: str) -> bytes:
    """A picture by its address, from public ones only (see `links.fetch`)."""
    from flows import links  # and with it all that reads web pages

    return links.fetch(url, _MAX_BYTES)


def _names(asked: Iterable[str], place: Callable[[Path], Path], left_out: Counter[str]) -> list[str]:
    """Paths and addresses, folders unfolded, each once."""
    found: dict[str, None] = {}
    asked = list(asked)
    here = {one for one in asked if one == "-" or check.is_address(one) or place(Path(one)).exists()}
    for one in asked:
        if one == "-":
            for line in sys.stdin:
                name = line.rstrip("\r\n")
                if name:
                    found.update(dict.fromkeys(_listed(name, place, left_out)))
        elif check.is_address(one):
            found[one] = None
        elif one in here or not here:
            found.update(dict.fromkeys(map(str, check.find([place(Path(one))], left_out))))
        else:
            found[str(place(Path(one)))] = None
    if not found:
        raise StageError("nothing to check: the list is empty")
    return list(found)


def _listed(name: str, place: Callable[[Path], Path], left_out: Counter[str]) -> list[str]:
    """What a line of a list stands for; a file that isn't there has its error in its row."""
    if check.is_address(name):
        return [name]
    path = place(Path(name))
    return [str(p) for p in check.inside(path, left_out)] if path.is_dir() else [str(path)]


def _count(counts: Counter[str], answered: Counter[str], row: Row) -> None:
    counts["error" if row["error"] is not None else row["verdict"]] += 1
    if row["error"] is None:
        answered[row["model_version"]] += 1


def _say(who: Who, answered: Counter[str]) -> None:
    """What the champion is for, where others answered."""
    said = who.said(answered)
    if said:
        print(said)


def _code(counts: Counter[str], is_strict: bool) -> int:
    if counts["error"]:
        return ERROR
    return AI if counts["ai"] or (is_strict and counts["uncertain"]) else REAL


def _sentence(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"{spelled(row['path'])}: error: {row['error']}"
    notes = "".join(f"; {warning}" for warning in row["warnings"])
    said = {key: value for key, value in row["provenance"].items() if key != "note"}
    notes += f"; the file says: {json.dumps(said, ensure_ascii=False)}" if said else ""
    verdict = f"{row['verdict']}, {row['says']}" if row["verdict"] == "real" else row["verdict"]
    by = reference.title(row["model_version"]) or f"version {row['model_version']}"
    return f"{spelled(row['path'])}: {verdict} (probability of ai {row['probability']:.3f}, by {by}){notes}"
