"""The review of reports on the command line."""

import getpass
from pathlib import Path

from rich.markup import escape

from components import reports
from components.serve.provenance.text import clean

_LONGEST = 80  # characters of a note


def waiting(folder: Path) -> list[list[str]]:
    """A row for each report that waits: name, time, claimed label, verdict, probability, version, note, picture.

    Whatever strangers wrote is made fit for a terminal.
    """
    return [
        [escape(clean(cell, _LONGEST)) for cell in _cells(one)[:-1]] + [escape(_cells(one)[-1])]
        for one in reports.waiting(folder)
    ]


def _cells(one: reports.Entry) -> list[str]:
    report = one.report
    p = report.said("probability")
    return [
        one.name[:12],
        str(report.said("reported"))[:19].replace("T", " "),
        report.label,
        report.verdict or "",
        f"{p:.3f}" if isinstance(p, float) else "",
        str(report.said("model_version")),
        str(report.said("note")),
        str(one.image),
    ]


def decide(folder: Path, name: str, decision: reports.Decision, remark: str) -> str:
    """Decide on a report, and say what came of it.

    Raises:
        StageError: there is no such report, or it was decided before.
    """
    report = reports.decide(folder, name, decision, getpass.getuser(), clean(remark, 500))
    label = f" as {report.label}" if report.status == "accepted" else ""
    hint = "; if a run took it in meanwhile, `trueframe forget` removes it" if decision == "reopen" else ""
    return f"{name}: {report.status}{label}{hint}"
