"""Pages and images from a real web site on this machine: what is taken, what is refused, and how politely."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import getaddrinfo
from typing import Any
from unittest.mock import Mock

import pytest
from urllib3.util import connection

from components.ingest import catalogue, web
from components.ingest.source import Item, Place
from components.ingest.web import addresses
from components.ingest.web import fetch as polite
from components.params import Ingest, Source
from components.stage import StageError

PUBLIC = "93.184.215.14"
Places = Callable[..., Place]


@dataclass
class Site:
    """A web site: what it answers by path, and what it was asked."""

    port: int = 0
    pages: dict[str, tuple[int, dict[str, str | None], bytes]] = field(default_factory=dict)
    log: list[tuple[str, float]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    rest: float = 0.0  # s after each byte

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def put(self, path: str, body: bytes | str, status: int = 200, **headers: str | None) -> str:
        data = body.encode() if isinstance(body, str) else body
        usual = {"Content_Type": "text/html" if isinstance(body, str) else "image/jpeg"}
        self.pages[path] = status, usual | {"Content_Length": str(len(data))} | headers, data
        return self.url(path)

    def redirect(self, path: str, target: str) -> str:
        return self.put(path, b"", status=302, Location=target)

    def asked(self, path: str | None = None) -> list[str]:
        """The paths that were asked for, robots.txt aside."""
        return [p for p, _ in self.log if (p == path if path else p != "/robots.txt")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self.site.log.append((self.path, time.monotonic()))
        self.site.hosts.append(self.headers["Host"])
        assert self.headers["User-Agent"].startswith("Trueframe")
        status, headers, data = self.site.pages.get(self.path, (404, {"Content_Length": "0"}, b""))
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        for start in range(len(data) if self.site.rest else 1):
            self.wfile.write(data[start : start + 1] if self.site.rest else data)
            time.sleep(self.site.rest)
        self.close_connection = headers["Content_Length"] != str(len(data))

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    site.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with served() as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polite, "INTERVAL", 0.0)
    monkeypatch.setattr(polite, "PAUSES", (0.01, 0.01, 0.01))


class Internet:
    """This machine at all addresses: those that names have, and those that were connected to."""

    def __init__(self) -> None:
        self.names: dict[str, Callable[[], list[str]]] = {}
        self.connected: list[str] = []

    def resolve(self, host: Any, *args: Any, **more: Any) -> Any:
        usual = PUBLIC if str(host).endswith(".test") else host
        return [found for ip in self.names.get(host, lambda: [usual])() for found in getaddrinfo(ip, *args, **more)]

    def connect(self, address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        self.connected.append(address[0])
        return socket.create_connection(("127.0.0.1", address[1]), 10)


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    made = Internet()
    monkeypatch.setattr(socket, "getaddrinfo", made.resolve)
    monkeypatch.setattr(connection, "create_connection", made.connect)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Places:
    """A source whose list holds the given lines."""

    def make(
        *lines: str, suffix: str = "txt", where: str = "", max_file_mb: int = 1, covered: Any = (), **said: Any
    ) -> Place:
        path = tmp_path / f"list.{suffix}"
        path.write_text("".join(f"{line}\n" for line in lines))
        source = Source.model_validate({"private": True, "label": "ai"} | said)
        settings = Ingest.model_validate({"sources": {"web": {}}, "max_file_mb": max_file_mb})
        entry, downloads = catalogue.Entry(), tmp_path / "downloads"
        return Place("web", where or f"web:{path}", entry, source, settings, downloads, frozenset(covered))

    return make


def fetch(place: Place) -> list[Item]:
    (part,) = web.parts(place)
    return [item for item in part.items() if isinstance(item, Item)]


def test_page(site: Site, place: Places) -> None:
    html = """<!doctype html><html><head>
      <base href="/pictures/">
      <meta property="og:image" content="og.jpg">
      <link rel="License" href="https://licences.test/by/4.0/"><link rel="icon" href="icon.png">
    </head><body>
      <img src="plain.jpg#top"><img src="plain.jpg"><img src=""><img src="data:image/png;base64,AAAA"><img>
      <img src="small.jpg" srcset="middle.jpg 300w, large,1.jpg 900w,small.jpg 100w, data:image/png;base64,AA== 999w">
      <picture><source srcset="p1.jpg, p2.jpg 2x"><img src="p0.jpg"></picture>
      <a href="full.jpg?x=1"><img src="thumb.jpg"></a><a href="other.html">next</a>
      <img src="drawing.svg"><a rel="license" href="/second">terms</a><img src="//127.0.0.1:PORT/absolute.jpg">
      <video><source src="film.mp4"></video><img src="http://[::1">
    </body></html>""".replace("PORT", str(site.port))
    page = site.put("/gallery/index.html", html)
    paths = [f"/pictures/{name}" for name in ("og.jpg", "plain.jpg", "large,1.jpg", "p2.jpg", "full.jpg?x=1")]
    urls = [site.put(path, path.encode()) for path in [*paths, "/absolute.jpg"]]
    about = {"generator": "flux", "page": page, "licence": "https://licences.test/by/4.0/"}
    items = [Item(url.removeprefix(site.url("")).encode(), url, "ai", **about) for url in urls]
    assert fetch(place(page, generator="flux")) == items
    assert len(site.asked()) == 1 + len(urls), "each once, and no page that it links to"


def test_base_of_a_redirected_page_is_where_it_ended(site: Site, place: Places) -> None:
    site.put("/new/page", '<a rel="nofollow license" href="">Public domain</a><img src="a.jpg">')
    site.put("/new/a.jpg", b"a")
    page = site.redirect("/old/page", "/new/page")
    item = Item(b"a", site.url("/new/a.jpg"), "ai", page=page, licence="Public domain")
    assert fetch(place(where=page)) == fetch(place(where=f"web:{page}")) == [item]


def test_text_list(site: Site, place: Places) -> None:
    a, b = site.put("/a.jpg", b"a"), site.put("/b.jpg", b"b")
    items = fetch(place("# two images", b, "", f"  {a}  ", b, b + "#again", label="real", generator="flux"))
    assert items == [Item(b"b", b, "real"), Item(b"a", a, "real")]
    assert sorted(site.asked()) == ["/a.jpg", "/b.jpg"]


def test_table(site: Site, place: Places) -> None:
    a, b, c = (site.put(f"/{name}.jpg", name.encode()) for name in "abc")
    page = site.put("/page", f'<a rel="license" href="/terms">x</a><img src="{c}">')
    lines = ["URL,label,generator,licence,split", f"{b},AI,sdxl,CC0,test", f"{a},real,,,", f'{page},,,"CC BY, 4.0",']
    assert fetch(place(*lines, suffix="csv", label="ai", generator="flux")) == [
        Item(b"b", b, "ai", "sdxl", "test", licence="CC0"),
        Item(b"a", a, "real"),
        Item(b"c", c, "ai", "flux", page=page, licence="CC BY, 4.0"),
    ]


@pytest.mark.parametrize(
    ("suffix", "lines", "says"),
    [
        ("txt", ["# list", "http://a.test/1"], "list.txt, line 2: label: field required; .* params.yaml"),
        ("csv", ["url,label", "http://a.test/1,fake"], "line 2: label: input should be 'ai' or 'real'"),
        ("csv", ["url,label", "http://a.test/1,ai", "http://a.test/1#x,real"], "line 3: .* but ai in .*, line 2"),
        ("csv", ["url,label,license", "http://a.test/1,ai,CC0"], "license: extra inputs are not permitted"),
        ("csv", ["address,label", "http://a.test/1,ai"], "line 2: url: field required"),
        ("csv", ["url,label", "http://a.test/1,ai,,"], "line 2: values without a column"),
        ("csv", ["url,label"], "lists no address"),
        ("json", ["[]"], "neither a .csv nor a .txt"),
    ],
)
def test_wrong_list(place: Places, suffix: str, lines: list[str], says: str) -> None:
    with pytest.raises(StageError, match=says):
        list(web.parts(place(*lines, suffix=suffix, label=None)))


def test_seen_changes_with_the_list(place: Places) -> None:
    places = [place(where="http://a.test/1"), place(where="http://a.test/2")]
    assert len({web.seen(p) for p in [*places, *places, place("http://a.test/1")]}) == 3
    with pytest.raises(StageError, match="no list of web addresses"):
        web.seen(place(where="web:none.txt"))


def test_what_was_covered_is_not_fetched_again(site: Site, place: Places) -> None:
    a, b = site.put("/a.jpg", b"a"), site.put("/b.jpg", b"b")
    (first,) = web.parts(place(a))
    assert [item.origin for item in fetch(place(a, b, covered=first.covers))] == [b]
    assert site.asked() == ["/b.jpg"]
    assert [item.label for item in fetch(place(a, covered=first.covers, label="real"))] == ["real"]


def test_who_stops_early_has_little_more_fetched(site: Site, place: Places) -> None:
    (part,) = web.parts(place(*(site.put(f"/{n}.jpg", b"a") for n in range(100)), max_images=2))
    first = next(part.items())
    assert isinstance(first, Item) and first.origin == site.url("/0.jpg")
    assert len(site.asked()) < 50
    assert part.covers == ()


def test_an_image_on_pages_of_both_labels_is_given_for_each(site: Site, place: Places) -> None:
    one, same, other = (site.put(f"/{n}", '<img src="logo.jpg">') for n in range(3))
    site.put("/logo.jpg", b"a")
    items = fetch(place("url,label", f"{one},ai", f"{same},ai", f"{other},real", suffix="csv", label=None))
    assert [(item.label, item.page) for item in items] == [("ai", one), ("real", other)]
    assert len(site.asked("/logo.jpg")) == 1


def test_robots_is_obeyed_and_fetched_once(site: Site, place: Places, capsys: pytest.CaptureFixture[str]) -> None:
    site.put("/robots.txt", "\ufeffUser-agent: *\nDisallow: /private/\nDisallow: /*.png$\n")
    for path in ("/a.jpg", "/private/b.jpg", "/d.png", "/e.jpg"):
        site.put(path, b"a")
    page = site.put("/page", '<img src="private/b.jpg"><img src="d.png"><img src="e.jpg">')
    with served() as other:
        other.put("/robots.txt", "User-agent: *\nDisallow:\n\nUser-agent: trueframe\nDisallow: /no")
        moved = [site.redirect(f"/moved{n}", url) for n, url in enumerate(["/private/b.jpg", other.url("/no.jpg")])]
        items = fetch(place(site.url("/private/b.jpg"), site.url("/a.jpg"), page, *moved))
    assert [item.origin for item in items] == [site.url("/a.jpg"), site.url("/e.jpg")]
    assert sorted(site.asked()) == ["/a.jpg", "/e.jpg", "/moved0", "/moved1", "/page"]
    assert other.asked() == []
    assert len(site.asked("/robots.txt")) == 1
    said = capsys.readouterr().out
    assert f"{site.url('/d.png')}: skipped: disallowed by {site.url('/robots.txt')}" in said
    assert f"{moved[1]}: skipped: redirects to {other.url('/no.jpg')}: disallowed" in said
    assert "web: 2 images; 4 of 7 addresses skipped" in said


@pytest.mark.parametrize(
    ("status", "tries", "says"), [(200, 1, "asks for 86400 s"), (403, 1, "disallowed"), (500, 4, "2 of 2")]
)
def test_robots_that_forbids_all(site: Site, place: Places, status: int, tries: int, says: str) -> None:
    site.put("/robots.txt", "User-agent: *\nCrawl-delay: 86400", status=status)
    a, b = site.put("/a.jpg", b"a"), site.put("/b.jpg", b"b")
    with pytest.raises(StageError, match=says):
        fetch(place(a, b))
    assert site.asked() == []
    assert len(site.asked("/robots.txt")) == tries, "once for both"
    site.put("/robots.txt", "", status=410)
    assert len(fetch(place(a, b))) == 2


@pytest.mark.parametrize("line", ["", "Crawl-delay: 0.3", "Request-rate: 10/3"])
def test_rate(site: Site, place: Places, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polite, "INTERVAL", 0.0 if line else 0.3)
    site.put("/robots.txt", f"User-agent: *\n{line}")
    site.put("/0.jpg", b"a")
    fetch(place(site.redirect("/moved.jpg", "/0.jpg"), site.put("/page", f'<img src="{site.put("/1.jpg", b"b")}">')))
    assert [path for path, _ in site.log] == ["/robots.txt", "/moved.jpg", "/0.jpg", "/page", "/1.jpg"]
    assert site.log[-1][1] - site.log[0][1] > 3.5 * 0.3, "of 4"


def test_hosts_do_not_wait_for_each_other_and_order_stays(
    site: Site, place: Places, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polite, "INTERVAL", 0.3)
    for n in range(3):
        site.put(f"/{n}.jpg", b"a")
    urls = [site.url(f"/{n}.jpg", f"{name}.test") for n in range(3) for name in "ab"] + [site.url("/0.jpg", "c.test")]
    assert [item.origin for item in fetch(place(*urls))] == urls
    assert site.hosts.index(f"c.test:{site.port}") < len(site.hosts) - 3, "before the others were done"


def test_retry_after(site: Site, place: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polite, "PAUSES", (0.01,))
    with pytest.raises(StageError, match="HTTP 503"):
        fetch(place(site.put("/a.jpg", "wait", status=503, Retry_After="1")))
    (_, (_, first), (_, second)) = site.log
    assert second - first > 0.8


def test_retry_after_longer_than_anyone_waits(site: Site, place: Places) -> None:
    a, b = site.put("/a.jpg", b"a"), site.put("/b.jpg", "later", status=429, Retry_After="3600")
    with pytest.raises(StageError, match=r"2 of 3 addresses didn't answer .*asks to come back in 3\d\d\d s"):
        fetch(place(a, b, site.put("/c.jpg", b"c")))
    assert site.asked() == ["/a.jpg", "/b.jpg"], "the host is left alone"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]", "2130706433", "0x7f000001", "127.1", "017700000001"),
        *("[::ffff:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::127.0.0.1]", "[64:ff9b:1::1]"),
        *("10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.0.8"),
        *("[fe80::1]", "[fd00::1]", "[fec0::1]", "[ff0e::1]", "[2001:0:7f00:1::]", "both.test"),
    ],
)
def test_private_address(site: Site, place: Places, internet: Internet, host: str) -> None:
    internet.names["both.test"] = lambda: [PUBLIC, "10.0.0.1"]
    with pytest.raises(StageError, match=r"(no public address|there is no host)"):
        fetch(place(site.url("/a.jpg", host), private=False))
    assert internet.connected == []
    assert all(map(addresses.is_public, (PUBLIC, f"64:ff9b::{PUBLIC}", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")))


def test_redirect_to_a_private_address(
    site: Site, place: Places, internet: Internet, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = site.put("/secret.jpg", b"secret")
    door = site.redirect("/door.jpg", secret).replace("127.0.0.1", "public.test")
    site.put("/a.jpg", b"a")
    site.put("/page", f'<img src="{secret}"><img src="/door.jpg"><img src="/a.jpg">')
    (item,) = fetch(place(site.url("/page", "public.test"), private=False))
    assert item.data == b"a"
    assert set(internet.connected) == {PUBLIC}
    assert set(site.hosts) == {f"public.test:{site.port}"}
    said = capsys.readouterr().out
    for url in (f"{secret}: skipped", f"{door}: skipped: redirects to {secret}"):
        assert f"{url}: 127.0.0.1 is at 127.0.0.1, which is no public address" in said
    site.log.clear()
    site.redirect("/robots.txt", secret)
    with pytest.raises(StageError, match=r"redirects to .*/secret.jpg: 127.0.0.1 is at .* no public address"):
        fetch(place(site.url("/b.jpg", "public.test"), private=False))
    assert site.asked() == []


def test_name_that_changes_its_address(site: Site, place: Places, internet: Internet) -> None:
    """DNS rebinding: each look-up is checked, and what was checked is what is connected to."""
    answers = iter([PUBLIC])
    internet.names["rebind.test"] = lambda: [next(answers, "127.0.0.1")]
    with pytest.raises(StageError, match=r"rebind.test is at 127.0.0.1, which is no public address"):
        fetch(place(site.url("/a.jpg", "rebind.test"), private=False))
    assert internet.connected == [PUBLIC]
    assert site.asked() == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://user:secret@127.0.0.1/a.jpg", "credentials are refused"),
        ("https://user@127.0.0.1/a.jpg", "credentials are refused"),
        ("file:///etc/hostname", "no address of the web"),
        ("http://:80/", "no address of the web"),
        ("http://[::1/a.jpg", "Failed to parse|Invalid"),
        ("http://" + "a" * 70 + ".test/a.jpg", "label empty or too long|there is no host"),
    ],
)
def test_refused_addresses_do_not_stop_others(site: Site, place: Places, url: str, says: str) -> None:
    assert len(fetch(place(url, site.put("/a.jpg", b"a")))) == 1
    for wrong in (url, site.redirect("/moved.jpg", url)):
        with pytest.raises(StageError, match=rf"no image could be fetched \(.*({says})"):
            fetch(place(wrong))


def test_redirects_end(site: Site, place: Places) -> None:
    urls = [site.redirect(f"/{n}", f"/{n + 1}") for n in range(6)]
    assert len(fetch(place(urls[1], site.put("/6", b"a")))) == 2
    with pytest.raises(StageError, match="more than 5 redirects"):
        fetch(place(urls[0]))


def test_proxies_of_the_environment_are_not_used(site: Site, place: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(fetch(place(site.put("/a.jpg", b"a")))) == 1


def test_tls_is_checked_by_name_though_the_connection_is_by_address(
    site: Site, place: Places, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def wrap(context: ssl.SSLContext, *_: Any, server_hostname: str, **__: Any) -> None:
        seen.add((server_hostname, context.check_hostname, context.verify_mode))
        raise ssl.SSLCertVerificationError("not valid")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    with pytest.raises(StageError, match="not valid"):
        fetch(place(f"https://public.test:{site.port}/a.jpg", private=False))
    assert seen == {("public.test", True, ssl.CERT_REQUIRED)}
    assert internet.connected == [PUBLIC]


@pytest.mark.parametrize("headers", [{}, {"Content_Length": None}])
def test_too_large(site: Site, place: Places, headers: dict[str, None], monkeypatch: pytest.MonkeyPatch) -> None:
    url = site.put("/large.jpg", bytes(2**20 + 1), **headers)
    for _ in range(2):
        assert fetch(place(url)) == [Item(None, url, "ai")]
    assert site.asked() == ["/large.jpg"]
    assert fetch(place(url, max_file_mb=2)) == [Item(bytes(2**20 + 1), url, "ai")]
    monkeypatch.setattr(polite, "PAGE_BYTES", 2**20)
    with pytest.raises(StageError, match="a page of more than 1 MB"):
        fetch(place(site.put("/page", "<p>" * 2**20, **headers), max_file_mb=100))


def test_types(site: Site, place: Places, capsys: pytest.CaptureFixture[str]) -> None:
    site.put("/vector", b"<svg/>", Content_Type="image/svg+xml; charset=utf-8")
    site.put("/soft404.jpg", "<p>not found</p>")
    site.put("/film", b"\0\0", Content_Type="video/mp4")
    urls = [site.put("/bytes", b"a", Content_Type=None), site.put("/upper", b"a", Content_Type="Image/JPEG;q=1")]
    page = site.put("/page", "".join(f'<img src="{path}">' for path in ("vector", "soft404.jpg", "film", *urls)))
    assert [item.origin for item in fetch(place(page))] == urls
    said = capsys.readouterr().out
    assert f"{site.url('/soft404.jpg')}: skipped: a page, not an image" in said
    assert f"{site.url('/film')}: skipped: video/mp4, neither a page nor an image" in said
    assert "3 of 6 addresses skipped" in said


def test_a_failed_run_goes_on_where_it_was(site: Site, place: Places, tmp_path: Path) -> None:
    page = site.put("/page", '<img src="a.jpg"><img src="b.jpg"><img src="c.jpg"><img src="none.jpg">')
    site.put("/a.jpg", b"a")
    site.put("/b.jpg", b"half", Content_Length="8")
    site.put("/c.jpg", b"c")
    with pytest.raises(StageError, match=r"1 of 5 addresses didn't answer \(.*broken.*run the same command again"):
        fetch(place(page))
    assert len(site.asked("/b.jpg")) == 4
    assert len(list((tmp_path / "downloads").iterdir())) == 3, "nothing half-written"
    site.log.clear()
    site.put("/b.jpg", b"b")
    assert [item.data for item in fetch(place(page))] == [b"a", b"b", b"c"]
    assert site.asked() == ["/b.jpg", "/none.jpg"]


def test_an_answer_that_never_ends(site: Site, place: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polite, "TOTAL_TIMEOUT", 0.5)
    monkeypatch.setattr(polite, "PAUSES", ())
    site.rest = 0.05
    began = time.monotonic()
    with pytest.raises(StageError, match=r"1 of 2 addresses didn't answer.*not done within 0.5 s"):
        fetch(place(site.put("/a.jpg", b"a"), site.put("/slow.jpg", bytes(1000))))
    assert time.monotonic() - began < 30, "of the 50 that the server takes"


def test_nobody_there(site: Site, place: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/a.jpg"
    with pytest.raises(StageError, match=r"1 of 2 addresses didn't answer.*refused"):
        fetch(place(dead, site.put("/a.jpg", b"a")))
    for number, says in ((socket.EAI_AGAIN, "didn't answer.*can't be resolved now"), (socket.EAI_NONAME, "no host")):
        monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror(number, "")))
        with pytest.raises(StageError, match=says):
            fetch(place("http://gone.test/a.jpg"))


def test_nothing_there(site: Site, place: Places) -> None:
    with pytest.raises(StageError, match=r"no image could be fetched \(.*/a.jpg: HTTP 404; .*/b.jpg: HTTP 410\)"):
        fetch(place(site.url("/a.jpg"), site.put("/b.jpg", "", status=410)))
    noise = site.put("/noise", bytes(range(256)) * 10, Content_Type="text/html; charset=nonsense")
    with pytest.raises(StageError, match=r"no image could be fetched \(its pages show none\)"):
        fetch(place(noise, site.put("/page", "<p>words</p>")))
