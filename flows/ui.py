"""The web page on a port."""

import io
import ipaddress
import socket
from pathlib import Path
from typing import Any

from PIL import Image

from components.serve import page
from components.serve.page import Limits
from components.serve.page.about import About
from components.stage import StageError
from flows import answering, links

FEEDBACK = Path("feedback")


def application(
    version: str | None = None, *, feedback: Path | None = None, trusted: bool = False, limits: Limits | None = None
) -> Any:
    """The page as an ASGI application, with the detector loaded.

    Args:
        version: that answers; the champion where none is named, or the reference detector until there is one.
        feedback: folder for corrections; null offers none.
        trusted: whether corrections are accepted as they come.
        limits: for visitors.
    """
    number = answering.version(version)
    about = About.of(answering.name(number), answering.found(number))
    detector = answering.detector(number)
    warm(detector)
    return page.build(detector, about, links.fetch, feedback=feedback, trusted=trusted, limits=limits or Limits())


def serve(version: str | None, host: str, port: int, feedback: Path | None, limits: Limits) -> None:
    """Serve the page until interrupted.

    On an address that only this machine reaches, corrections are offered without being asked for, and accepted as
    they come: whoever is there owns the data. In public they are offered where a folder is named, and wait.

    Raises:
        StageError: the port is taken.
    """
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) == 0:
            raise StageError(f"port {port} is taken; choose another one with --port")
    own = _is_own(host)
    folder = feedback or (FEEDBACK if own else None)
    app = application(version, feedback=folder, trusted=own, limits=limits)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        print(
            f"corrections go to {folder}/; `trueframe ingest reports --from feedback:{folder}` makes every "
            "`trueframe run` take them in"
        )
    print(f"the page is ready at http://{host}:{port}", flush=True)
    run(app, host, port)


def run(app: Any, host: str, port: int) -> None:
    """Run an application until interrupted."""
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)


def warm(detector: Any) -> None:
    """Let it judge a picture, so that the first visitor doesn't wait for what is loaded at the first answer."""
    file = io.BytesIO()
    Image.new("RGB", (256, 256)).save(file, "PNG")
    detector.score([file.getvalue()])


def _is_own(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
