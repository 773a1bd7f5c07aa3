"""The page's parts and what happens on a click, in Gradio."""

import secrets
import sys
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import gradio as gr

from components import images, reports
from components.serve import check
from components.serve.page import judged as parts
from components.serve.page import report, review
from components.serve.page.about import About, table
from components.serve.page.judged import Judged
from components.serve.provenance.text import clean
from components.stage import StageError

if TYPE_CHECKING:
    from components.serve.page import Limits, Shelf

_INTRO = """# Is this picture AI-generated?
Drop a picture, choose it, paste it (Ctrl+V) or give its link. {who} Answers are wrong now and then, so take them as a
hint and no proof."""
_CONSENT = "I have the right to give this picture, and agree that it is stored to train the next detector"
_GONE = "The picture was deleted by now; give it once more."
_FULL = "So many corrections wait for a decision that no more are taken. Thank you all the same."
_FAILED = "The correction can't be kept just now, and whoever runs this page was told. Please try again another time."
_NOTE = 500  # characters
_FORWARDED = ("forwarded", "via", "x-forwarded-", "x-real-ip")  # how the headers begin that a proxy adds
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "HEIF": "heic"}


def theme() -> Any:
    """Gradio's, in the system's own fonts and with the contrast that small text needs."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def page(handler: "Handler", *, for_reviewers: bool = False) -> gr.Blocks:
    """The page (see `components.serve.page.build`), for those with the key with one tab more."""
    limits = handler.limits
    first: dict[str, Any] = {
        "concurrency_limit": limits.at_once,
        "concurrency_id": "verdict",
        "api_visibility": "private",
    }
    later: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "details", "api_visibility": "private"}
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(
        analytics_enabled=False, title="Is this picture AI-generated?", delete_cache=(600, int(limits.keep))
    ) as demo:
        gr.Markdown(handler.introduction)
        if for_reviewers and handler.feedback:
            review.tab(demo, handler.feedback)
        with gr.Tab("One picture"):
            state = gr.State(None, time_to_live=int(limits.keep))
            with gr.Row():
                with gr.Column(elem_id="ask"):
                    file = gr.File(label="Picture", elem_id="picture", height=150)
                    link = gr.Textbox(label="Link to a picture", placeholder="https://…", elem_id="link", max_lines=1)
                    fetched = gr.Button("Get it", elem_id="get", size="sm")
                with gr.Column(elem_id="answer"):
                    verdict = gr.HTML("<p class=quiet>No picture yet.</p>", elem_id="verdict")
            with gr.Column(visible=False, elem_id="more") as more:
                with gr.Row():
                    with gr.Column(min_width=300):
                        shown = gr.HTML(elem_id="shown")
                    with gr.Column(min_width=300):
                        with gr.Accordion("After it is saved again"):
                            resaves = gr.HTML(elem_id="resaves")
                        with gr.Accordion("What the file says of itself"):
                            origin = gr.HTML(elem_id="provenance")
                with gr.Accordion("How often it is wrong on such pictures"):
                    errors = gr.HTML(elem_id="errors")
                with gr.Row():
                    download = gr.DownloadButton("Download a report (PDF)", elem_id="report", size="sm")
                    share = gr.Button("Make a link to the report", elem_id="share", size="sm")
                shared = gr.HTML(elem_id="shared", visible=False)
                if handler.feedback:
                    with gr.Accordion("This is wrong", open=False, elem_id="wrong"):
                        truth = gr.Radio(
                            [("a real photograph, or made by a person", "real"), ("AI-generated", "ai")],
                            label="What it really is",
                            elem_id="truth",
                        )
                        note = gr.Textbox(
                            label="How you know (optional)", elem_id="note", max_length=_NOTE, max_lines=3
                        )
                        consent = gr.Checkbox(label=_CONSENT, elem_id="consent")
                        send = gr.Button("Send the correction", elem_id="send", size="sm")
                        thanks = gr.HTML(elem_id="thanks")
                        send.click(handler.correct, [state, truth, consent, note], thanks, **quick)
            outputs = [file, verdict, state, more, shown, resaves, origin, errors, shared]
            filled = [shown, resaves, download]
            asked = [
                file.upload(handler.judge_file, file, outputs, show_progress="minimal", **first),
                fetched.click(handler.judge_link, link, outputs, show_progress="minimal", **first),
                link.submit(handler.judge_link, link, outputs, show_progress="minimal", **first),
            ]
            for event in asked:
                event.then(handler.look, state, filled, show_progress="hidden", **later)
            share.click(handler.share, state, shared, **quick)
        with gr.Tab("Several"):
            several = gr.File(label="Pictures", file_count="multiple", elem_id="several", height=150)
            listed = gr.HTML(elem_id="table")
            saved = gr.DownloadButton("Download the table (CSV)", visible=False, elem_id="csv", size="sm")
            several.upload(handler.batch, several, [several, listed, saved], show_progress="minimal", **later)
        with gr.Tab("About it"):
            gr.HTML(lambda: handler.answering().html(), elem_id="about")
    return demo


class Handler:
    """What the page does with a visitor's pictures.

    Args:
        answering, fetch, feedback, trusted: as for `components.serve.page.build`.
        files: keeps pictures and what is made of them.
        links: keeps shared reports.
        limits: for visitors.
        lasts: whether `links` outlasts the page.
    """

    def __init__(
        self,
        answering: Callable[[], About],
        fetch: Callable[[str, int], bytes],
        feedback: Path | None,
        trusted: bool,
        files: "Shelf",
        links: "Shelf",
        limits: "Limits",
        *,
        lasts: bool = False,
    ) -> None:
        self.answering, self.fetch = answering, fetch
        self.feedback, self.trusted, self.limits = feedback, trusted, limits
        self.files, self.links, self.lasts = files, links, lasts

    def introduction(self) -> str:
        """What stands above all."""
        return _INTRO.format(who=self.answering().introduction())

    def judge_file(self, path: str | None) -> tuple[Any, ...]:
        """The verdict for an uploaded file, which is then deleted."""
        return self._judge(lambda: (Path(path or "").name, self._taken(path)))

    def judge_link(self, url: str) -> tuple[Any, ...]:
        """The verdict for a picture on the web."""
        return self._judge(lambda: (url.strip(), self.fetch(_link(url.strip()), self.limits.max_bytes)))

    def look(self, judged: Judged | None) -> Any:
        """What takes longer than the verdict."""
        if judged is None:
            yield [gr.skip()] * 3
            return
        parts.explain(judged)
        yield parts.picture_html(judged), gr.skip(), gr.skip()
        parts.resave(judged)
        pdf = self.files.put(f"trueframe-{secrets.token_hex(8)}.pdf", report.draw(judged, "pdf"))
        yield gr.skip(), parts.resaves_html(judged), gr.DownloadButton(value=str(pdf))

    def share(self, judged: Judged) -> Any:
        """Keep the report as a picture that whoever has the link can see."""
        token = secrets.token_urlsafe(16)
        try:
            self.links.put(f"{token}.png", report.draw(judged, "png"))
        except FileNotFoundError:
            return gr.HTML(_problem(_GONE), visible=True)
        until = "" if self.lasts else "until this page is started anew, and at most "
        days = self.limits.keep_links / 86400
        says = (
            f'<p role=status><a href="report/{token}" target=_blank>Link to the report</a>, which shows the picture. '
            f"Whoever has the link can see it, {until}for {days:.0f} days.</p>"
        )
        return gr.HTML(says, visible=True)

    def correct(self, judged: Judged | None, truth: str | None, consent: bool, note: str, request: gr.Request) -> str:
        """Store a correction. Whoever came by way of a proxy may be anyone, whatever address this page has."""
        if judged is None or not self.feedback:
            return _problem("There is no picture to correct.")
        if truth is None:
            return _problem("Say what it really is.")
        if not consent:
            return _problem("Without your consent nothing is stored.")
        said = {
            "label": truth,
            "consent": True,
            "name": clean(judged.name, _NOTE),
            "note": clean(note, _NOTE),
            "answer": judged.row["label"],
            **{key: judged.row[key] for key in ("verdict", "probability", "model_version")},
        }
        trusted = self.trusted and not _is_forwarded(request.headers)
        try:
            kind = judged.stored.format or "JPEG"
            suffix = _SUFFIXES.get(kind, kind.lower())
            reports.store(self.feedback, judged.data, suffix, said, trusted=trusted)
        except FileNotFoundError:
            return _problem(_GONE)
        except reports.Full:
            return _problem(_FULL)
        except (StageError, OSError) as error:
            print(f"error: a correction wasn't stored: {error}", file=sys.stderr, flush=True)
            return _problem(_FAILED)
        then = "for the next training" if trusted else "until somebody has looked at them"
        return f"<p role=status>Thank you. The picture and your correction are stored {then}.</p>"

    def batch(self, paths: list[str] | None) -> tuple[Any, Any, Any]:
        """A table of verdicts, and the same as CSV."""
        paths = paths or []
        if len(paths) > self.limits.batch:
            return None, _problem(f"{len(paths)} files; {self.limits.batch} at once are the limit."), gr.skip()
        about = self.answering()
        answers = about.detector.score([self._taken(path) for path in paths])
        rows = [{"path": Path(path).name, **row} for path, row in zip(paths, answers, strict=True)]
        file = self.files.put(f"trueframe-{secrets.token_hex(8)}.csv", b"")
        check.write(rows, file)
        lines = [["file", "verdict", "probability", "answered by", "notes"]]
        for row in rows:
            p = "" if row["error"] else f"{row['probability']:.0%}"
            notes = "; ".join(
                [*row["warnings"], *(["says something of its origin"] if row["provenance"].keys() - {"note"} else [])]
            )
            by = "" if row["error"] else about.part(row).name
            lines.append([row["path"], parts.said(row), p, by, notes])
        return (
            None,
            f"<p role=status>{len(rows)} pictures judged.</p>{table('Verdicts', lines)}",
            gr.DownloadButton(value=str(file), visible=True),
        )

    def _taken(self, path: str | None) -> bytes:
        """The bytes of Gradio's copy, which is deleted."""
        if not path:
            return b""
        data = Path(path).read_bytes()
        Path(path).unlink(missing_ok=True)
        return data

    def _judge(self, get: Callable[[], tuple[str, bytes]]) -> tuple[Any, ...]:
        """The file input is emptied, so that the next picture finds it ready."""
        try:
            name, data = get()
            judged = parts.judge(self.answering(), name, self.files.put(secrets.token_hex(16), data))
        except images.ImageError as error:
            skipped = [gr.skip()] * 5
            return None, _problem(f"This can't be judged: {error}."), None, gr.Column(visible=False), *skipped
        return (
            None,
            parts.verdict_html(judged),
            judged,
            gr.Column(visible=True),
            parts.picture_html(judged),
            parts.resaves_html(judged),
            parts.provenance_html(judged),
            parts.errors_html(judged),
            gr.HTML(visible=False),
        )


def _link(text: str) -> str:
    """A link as it is.

    Raises:
        ImageError: it is none.
    """
    try:
        parts = urlsplit(text)
        is_link = parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in parts.netloc
    except ValueError:
        is_link = False
    if not is_link:
        raise images.ImageError("that is no link (http://… or https://…)")
    return text


def _is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether a proxy handed a request on, as far as it says so."""
    return any(name.lower().startswith(_FORWARDED) for name in headers)


def _problem(text: str) -> str:
    return f"<p class=problem role=alert>{escape(text)}</p>"
