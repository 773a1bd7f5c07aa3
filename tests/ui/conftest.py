"""A small detector, a page on a port, a browser."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import detectors
import pytest

from components.serve.files import Files

CARD = """# small

A detector of AI-generated images: one network that sees `16`. 26.2% of the answers are `uncertain`.

## Trained on

| source | ai | real | generators | licence |
| --- | --- | --- | --- | --- |
| art | 309 | 241 | not named | CC0 |

### By label

|  | images | accuracy | 95 % interval |
| --- | --- | --- | --- |
| ai | 323 | 0.8359 | 0.7957 to 0.8731 |
| real | 361 | 0.8587 | 0.8227 to 0.8947 |

### Degraded (200 of the test images)

|  | balanced accuracy | 95 % interval |
| --- | --- | --- |
| re-saved as JPEG 95 | 0.8399 | 0.7893 to 0.8896 |
| re-saved as JPEG 50 | 0.7123 | 0.7000 to 0.8963 |
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """An untrained network with a decision and a card."""
    equalise = {"size": "resize", "side": 48, "quality": 90}
    network = detectors.member(detectors.cnn())
    return detectors.write(tmp_path_factory.mktemp("small"), network, card=CARD, threshold=0.45, equalise=equalise)


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's program."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return (Path(package.__file__).parent / "axe.min.js").read_text()


@contextmanager
def on_a_port(app: Any) -> Iterator[str]:
    """Serve an application; gives its address."""
    import uvicorn

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="session")
def served() -> Callable[[Any], Any]:
    return on_a_port
