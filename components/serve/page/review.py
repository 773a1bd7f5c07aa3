"""The tab in which people with the key decide on what visitors reported."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from components import images, reports
from components.serve.page import judged
from components.serve.page.about import table
from components.serve.provenance.text import clean
from components.stage import StageError

SAYS = {"ai": "AI-generated", "real": "not AI-generated", "uncertain": "uncertain", None: "not known"}
_BUTTONS: dict[str, tuple[reports.Decision | None, str]] = {
    "accept": ("accept", "Accept (A)"),
    "relabel": ("relabel", "It is the other one (O)"),
    "reject": ("reject", "Reject (R)"),
    "later": (None, "Later (L)"),
    "undo": ("reopen", "Undo (U)"),
}
_LONGEST = 500  # characters of a remark


def tab(demo: gr.Blocks, folder: Path) -> None:
    """Add the tab to a page; the letters on its buttons are keys while the focus is in it.

    Args:
        demo: the page.
        folder: of reports.
    """
    queue = Queue(folder)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Tab("Review", elem_id="review"):
        count = gr.HTML(elem_id="waiting")
        picture = gr.HTML(elem_id="reported")
        remark = gr.Textbox(label="Remark, kept with the decision (optional)", elem_id="remark", max_lines=1)
        now, last, passed = gr.State(None), gr.State(None), gr.State([])
        outputs = [count, picture, remark, now, last, passed]
        with gr.Row():
            for name, (decision, label) in _BUTTONS.items():
                button = gr.Button(label, elem_id=f"review-{name}", size="sm", min_width=120)
                button.click(queue.action(decision), [now, last, passed, remark], outputs, **quiet)
        gr.HTML('<form method=post action="out"><button class=quiet>Leave</button></form>', elem_id="leave")
    demo.load(queue.show, [last, passed], outputs, **quiet)


class Queue:
    """What waits for a decision, the oldest first.

    Args:
        folder: of reports.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def show(self, last: str | None, passed: list[str], says: str = "") -> tuple[Any, ...]:
        """The next report: how many wait, the picture with what is said of it, an empty remark, and three states.

        Args:
            last: the report that was decided before, which can be put back.
            passed: those that come later.
            says: what came of the decision, as HTML.
        """
        try:
            waiting = reports.waiting(self._folder)
        except StageError as error:
            return _problem(str(error)), "", "", None, last, passed
        n = len(waiting)
        wait = "No report waits" if not n else "1 report waits" if n == 1 else f"{n:,} reports wait"
        count = f"{says}<p role=status>{wait} for a decision.</p>"
        left = [one for one in waiting if one.name not in passed]
        if not left:
            left, passed = waiting, []
        if not left:
            return count, "", "", None, last, passed
        return count, entry_html(left[0]), "", left[0].name, last, passed

    def action(self, decision: reports.Decision | None) -> Callable[..., tuple[Any, ...]]:
        """What a button does; null for later."""

        def act(
            now: str | None, last: str | None, passed: list[str], remark: str, request: gr.Request
        ) -> tuple[Any, ...]:
            name = last if decision == "reopen" else now
            if name is None:
                return self.show(last, passed)
            if decision is None:
                return self.show(last, [*passed, name])
            reviewer = request.username or "a reviewer"
            try:
                report = reports.decide(self._folder, name, decision, reviewer, clean(remark, _LONGEST))
            except StageError as error:
                return self.show(last, passed, _problem(str(error)))
            done = "put back" if decision == "reopen" else f"{report.status} as {SAYS[report.label]}"
            done = "rejected" if decision == "reject" else done
            says = f"<p class=quiet>{escape(name[:12])} is {done}.</p>"
            return self.show(None if decision == "reopen" else name, passed, says)

        return act


def entry_html(entry: reports.Entry) -> str:
    """A report as a reviewer sees it: all of it text, and the picture drawn anew."""
    report = entry.report
    p = report.said("probability")
    lines = [
        ["reported as", SAYS[report.label]],
        ["the detector said", SAYS[report.verdict]],
        ["probability of AI", f"{p:.1%}" if isinstance(p, float) else "not known"],
        ["version", report.said("model_version")],
        ["note", report.said("note")],
        ["reported at", report.said("reported")],
        ["name of the file", report.said("name") or entry.image.name],
    ]
    said = table("The report", [["what", "report"], *([name, clean(text, _LONGEST)] for name, text in lines)])
    try:
        shown = f'<img alt="The picture that was reported" src="{judged.data_url(judged.small(entry.image))}">'
    except (images.ImageError, FileNotFoundError) as error:
        shown = _problem(f"The picture can't be shown: {error}.")
    return f"<figure class=picture>{shown}</figure>{said}"


def _problem(text: str) -> str:
    return f"<p class=problem role=alert>{escape(text)}</p>"
