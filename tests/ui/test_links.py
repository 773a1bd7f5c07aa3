"""Pictures by their link: what is fetched, and what is refused."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from components.images import ImageError
from flows import links


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, rest = self.path[1:].partition("/")
            self.send_response({"to": 302, "gone": 404}.get(kind, 200))
            if kind == "to":
                self.send_header("Location", f"/{rest}" if rest else self.path)
            else:
                self.send_header("Content-Type", "text/html" if kind == "page" else "image/png")
            self.end_headers()
            if kind in ("picture", "page"):
                self.wfile.write(b"x" * 1000)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_picture_is_fetched_by_way_of_redirects(web: str) -> None:
    assert links.fetch(f"{web}/to/to/picture", 1000, private=True) == b"x" * 1000


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("picture", "more than 0 MB"),
        ("page", "text/html, not to a picture's file"),
        ("gone", "HTTP 404"),
        ("to/", "redirects more than 5 times"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(web: str, path: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        links.fetch(f"{web}/{path}", 999 if path == "picture" else 10_000, private=True)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/a.png", "no public address"),
        ("http://localhost:7860/a.png", "no public address"),
        ("http://[::1]/a.png", "no public address"),
        ("http://169.254.169.254/latest/meta-data", "no public address"),
        ("http://10.0.0.1/a.png", "no public address"),
        ("file:///etc/passwd", "no address of the web"),
        ("ftp://example.com/a.png", "no address of the web"),
        ("http://user:pass@127.0.0.1/", "user name"),
        ("hello", "no address of the web"),
        ("", "no address of the web"),
    ],
)
def test_only_public_addresses_of_the_web_are_asked(url: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        links.fetch(url, 1000)
