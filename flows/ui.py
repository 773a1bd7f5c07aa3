"""The web page on a port."""

import io
import ipaddress
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from components.params import load
from components.serve import access, page, reference
from components.serve.page import Limits
from components.serve.page.about import About
from components.stage import StageError
from flows import answering, links

FEEDBACK = Path("feedback")
LINKS = Path("artifacts/links")
_CONNECTIONS = 1000
KEYS = "TRUEFRAME_REVIEW_KEYS"


def application(
    version: str | None = None,
    *,
    feedback: Path | None = None,
    trusted: bool = False,
    reviewers: Any = None,
    shared: Path | None = None,
    limits: Limits | None = None,
) -> Any:
    """The page as an ASGI application, with the detector loaded.

    Args:
        version: that answers, by itself; where none is named the champion, also a later one, and for what it wasn't
            judged on, or until there is one, the reference detectors.
        feedback: folder for corrections; null offers none.
        trusted: whether corrections are accepted as they come, without a proxy in between.
        reviewers: decide on those that aren't (see `reviewers`).
        shared: folder for shared reports; null for one that ends with the page.
        limits: for visitors.
    """
    return page.build(
        Answering(version),
        links.fetch,
        feedback=feedback,
        trusted=trusted,
        reviewers=reviewers,
        links=shared,
        limits=limits or Limits(),
    )


class Answering:
    """Who answers: the version asked for, or whoever is champion.

    A new champion is loaded beside the one that answers, and takes over when it is ready. While the registry doesn't
    answer, or where a champion can't be loaded, the one before goes on, and that is said.

    Args:
        version: that answers; null for the champion.
    """

    def __init__(self, version: str | None) -> None:
        self._number, self._pause = answering.version(version), load().serve.poll_s
        named = reference.title(self._number)
        self._references = answering.references(self._number) if named else [] if version else reference.beside()
        self._about = self._loaded(self._number)
        if version is None:
            threading.Thread(target=self._follow, name="champion", daemon=True).start()

    def __call__(self) -> About:
        """At this moment."""
        return self._about

    def _follow(self) -> None:
        said = ""
        while True:
            time.sleep(self._pause)
            try:
                number = answering.champion() or self._number
                if number != self._number:
                    self._about, self._number = self._loaded(number), number
                    print(f"{self._about.name} answers from now on", flush=True)
                said = ""
            except Exception as error:  # whatever a registry or a model may raise: visitors have an answer all the same
                reason = str(error).partition("\n")[0][:200]
                if reason != said:
                    print(f"error: {reason}; {self._about.name} goes on", file=sys.stderr, flush=True)
                said = reason

    def _loaded(self, number: str) -> About:
        title = reference.title(number)
        if title:
            about = About.of(title, None, self._references)
        else:
            with answering.found(number) as (files,):
                about = About.of(answering.name(number), (files, answering.detector(number)), self._references)
        warm(about.detector)
        return about


def reviewers() -> Any:
    """Those whose keys `TRUEFRAME_REVIEW_KEYS`, or the file `TRUEFRAME_REVIEW_KEYS_FILE`, names; null for nobody.

    Raises:
        StageError: the file can't be read, there is no key in it, or one is too short.
    """
    keys = access.keys(KEYS)
    if not keys:
        return None
    from components.serve.page.reviewers import Reviewers

    return Reviewers(keys)


def serve(version: str | None, host: str, port: int, feedback: Path | None, limits: Limits) -> None:
    """Serve the page until interrupted.

    On an address that only this machine reaches, corrections are offered without being asked for, and accepted as
    they come: whoever is there owns the data. In public they are offered where a folder is named, and wait; so does,
    on any address, what came by way of a proxy, and everything where there are reviewers.

    Raises:
        StageError: the port is taken.
    """
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) == 0:
            raise StageError(f"port {port} is taken; choose another one with --port")
    own, people = _is_own(host), reviewers()
    folder = feedback or (FEEDBACK if own else None)
    if people and not folder:
        raise StageError(f"{KEYS} names who reviews, but there is nothing to review; name a folder with --feedback")
    app = application(
        version, feedback=folder, trusted=own and not people, reviewers=people, shared=_shared(), limits=limits
    )
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        print(
            f"corrections go to {folder}/; `trueframe ingest reports --from feedback:{folder}` makes every "
            "`trueframe run` take them in"
        )
    if people:
        print(f"those with a key review at http://{host}:{port}/review")
    print(f"the page is ready at http://{host}:{port}", flush=True)
    run(app, host, port)


def run(app: Any, host: str, port: int) -> None:
    """Run an application until interrupted."""
    import uvicorn

    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=3,
    )


def warm(detector: Any) -> None:
    """Let it judge a picture, so that the first visitor doesn't wait for what is loaded at the first answer."""
    file = io.BytesIO()
    Image.new("RGB", (256, 256)).save(file, "PNG")
    detector.score([file.getvalue()])


def _shared() -> Path | None:
    """Where shared reports outlast the page; null where nothing can be written there, as in a container."""
    try:
        LINKS.mkdir(0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=LINKS):
            return LINKS
    except OSError as error:
        print(f"warning: {LINKS}: {error.strerror}; links to reports end with this page", file=sys.stderr, flush=True)
        return None


def _is_own(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
