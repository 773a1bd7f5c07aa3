"""Pages and images from a real web site on this machine: what is taken, what is refused, and how politely."""

import datetime
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from urllib3.util import connection

from components.ingest import catalogue, web
from components.ingest.source import Item, Place
from components.ingest.web import addresses
from components.ingest.web import fetch as polite
from components.ingest.web import page as pages
from components.params import Ingest, Source
from components.stage import StageError

PUBLIC = "93.184.215.14"
Answer = Callable[[BaseHTTPRequestHandler], None]
Jpeg = Callable[..., bytes]
Places = Callable[..., Place]


@dataclass
class Site:
    """A web site: what it answers by path, and what it was asked."""

    port: int = 0
    pages: dict[str, Answer] = field(default_factory=dict)
    log: list[tuple[str, float]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def put(self, path: str, body: bytes | str, media: str | None = None, status: int = 200, **headers: str) -> str:
        data = body.encode() if isinstance(body, str) else body
        media = media or ("text/html" if isinstance(body, str) else "image/jpeg")

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            headers_ = {"Content-Type": media, "Content-Length": str(len(data))} | headers
            for name, value in headers_.items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()
            request.wfile.write(data)

        self.pages[path] = answer
        return self.url(path)

    def redirect(self, path: str, target: str) -> str:
        return self.put(path, b"", status=302, Location=target)

    def asked(self, path: str | None = None) -> list[str]:
        """The paths that were asked for, robots.txt aside."""
        return [p for p, _ in self.log if (p == path if path else p != "/robots.txt")]

    def gaps(self) -> list[float]:
        return [later - earlier for (_, earlier), (_, later) in pairwise(self.log)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self.site.log.append((self.path, time.monotonic()))
        self.site.agents.add(self.headers["User-Agent"])
        self.site.hosts.append(self.headers["Host"])
        if self.path in self.site.pages:
            self.site.pages[self.path](self)
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
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


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What names resolve to: a list of addresses, or a function that gives one, or raises."""
    known: dict[str, Any] = {"public.test": [PUBLIC]}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        ips = known.get(host, [host])
        return [found for ip in (ips() if callable(ips) else ips) for found in real(ip, port, *args, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


@pytest.fixture
def internet(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All addresses lead to this machine; gives those of all connections."""
    connected: list[str] = []

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        connected.append(address[0])
        return socket.create_connection(("127.0.0.1", address[1]), 10)

    monkeypatch.setattr(connection, "create_connection", connect)
    return connected


@pytest.fixture
def place(tmp_path: Path) -> Places:
    """A source whose list holds the given lines."""

    def make(
        *lines: str, suffix: str = "txt", where: str | None = None, max_file_mb: int = 1, covered: Any = (), **said: Any
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
    return list(part.items())


def test_page(site: Site, place: Places, jpeg: Jpeg) -> None:
    html = """<!doctype html><html><head>
      <base href="/pictures/">
      <meta property="og:image" content="og.jpg">
      <link rel="License" href="https://licences.test/by/4.0/"><link rel="icon" href="icon.png">
    </head><body>
      <img src="plain.jpg#top"><img src="plain.jpg"><img src=""><img src="data:image/png;base64,AAAA"><img>
      <img src="small.jpg" srcset="middle.jpg 300w, large,1.jpg 900w, small.jpg 100w">
      <picture><source srcset="p1.jpg, p2.jpg 2x"><img src="p0.jpg"></picture>
      <a href="full.jpg?x=1"><img src="thumb.jpg"></a><a href="other.html">next</a>
      <img src="drawing.svg"><a rel="license" href="/second">terms</a><img src="//127.0.0.1:PORT/absolute.jpg">
      <video><source src="film.mp4"></video><img src="http://[::1">
    </body></html>""".replace("PORT", str(site.port))
    page = site.put("/gallery/index.html", html)
    taken = ["og.jpg", "plain.jpg", "large,1.jpg", "p2.jpg", "full.jpg?x=1"]
    files = {f"/pictures/{name}": jpeg(seed) for seed, name in enumerate(taken)} | {"/absolute.jpg": jpeg(99)}
    for path, data in files.items():
        site.put(path, data)
    about = {"generator": "flux", "page": page, "licence": "https://licences.test/by/4.0/"}
    expected = [Item(data, site.url(path), "ai", **about) for path, data in files.items()]
    assert fetch(place(page, generator="flux")) == expected
    assert sorted(site.asked()) == sorted(["/gallery/index.html", *files]), "each once, and no page that it links to"


def test_base_of_a_redirected_page_is_where_it_ended(site: Site, place: Places, jpeg: Jpeg) -> None:
    site.put("/new/page", '<a rel="nofollow license" href="">Public domain</a><img src="a.jpg">')
    site.put("/new/a.jpg", jpeg(1))
    page = site.redirect("/old/page", "/new/page")
    for where in (page, f"web:{page}"):
        (item,) = fetch(place(where=where))
        assert item == Item(jpeg(1), site.url("/new/a.jpg"), "ai", page=page, licence="Public domain")


@pytest.mark.parametrize(
    ("srcset", "largest"),
    [
        ("", ""),
        ("a.jpg, b.jpg 2x", "b.jpg"),
        ("a.jpg 1.5x,b.jpg 1x", "a.jpg"),
        ("a.jpg 100w, b,c.jpg 300w , d.jpg 200w", "b,c.jpg"),
        ("data:image/png;base64,AA== 3x, z.jpg", "z.jpg"),
        (",,a.jpg,", "a.jpg"),
        ("a.jpg huge, b.jpg 2x", "b.jpg"),
    ],
)
def test_largest_of_a_srcset(srcset: str, largest: str) -> None:
    assert pages._largest(srcset) == largest


def test_text_list(site: Site, place: Places, jpeg: Jpeg) -> None:
    a, b = site.put("/a.jpg", jpeg(1)), site.put("/b.jpg", jpeg(2))
    items = fetch(place("# two images", b, "", f"  {a}  ", b, b + "#again", label="real", generator="flux"))
    assert items == [Item(jpeg(2), b, "real"), Item(jpeg(1), a, "real")]
    assert sorted(site.asked()) == ["/a.jpg", "/b.jpg"]


def test_table(site: Site, place: Places, jpeg: Jpeg) -> None:
    a, b, c = (site.put(f"/{name}.jpg", jpeg(seed)) for seed, name in enumerate("abc"))
    page = site.put("/page", f'<a rel="license" href="/terms">x</a><img src="{c}">')
    lines = ["URL,label,generator,licence,split", f"{b},AI,sdxl,CC0,test", f"{a},real,,,", f'{page},,,"CC BY, 4.0",']
    items = fetch(place(*lines, suffix="csv", label="ai", generator="flux"))
    assert items == [
        Item(jpeg(1), b, "ai", "sdxl", "test", licence="CC0"),
        Item(jpeg(0), a, "real"),
        Item(jpeg(2), c, "ai", "flux", page=page, licence="CC BY, 4.0"),
    ]


@pytest.mark.parametrize(
    ("suffix", "lines", "says"),
    [
        ("txt", ["# list", "http://a.test/1.jpg"], "list.txt, line 2: label: field required; .* params.yaml"),
        ("csv", ["url,label", "http://a.test/1.jpg,ai", "http://a.test/2.jpg,"], "line 3: label: field required"),
        ("csv", ["url,label", "http://a.test/1.jpg,fake"], "line 2: label: input should be 'ai' or 'real'"),
        ("csv", ["url,label,split", "http://a.test/1.jpg,ai,dev"], "line 2: split: input should be 'train', "),
        ("csv", ["url,label", "http://a.test/1,ai", "http://a.test/1#x,real"], "line 3: .* but ai in .*, line 2"),
        ("csv", ["url,label,license", "http://a.test/1.jpg,ai,CC0"], "license: extra inputs are not permitted"),
        ("csv", ["address,label", "http://a.test/1.jpg,ai"], "line 2: url: field required"),
        ("csv", ["url,label", "http://a.test/1.jpg,ai,,"], "line 2: values without a column"),
        ("csv", ["url,label", '"http://a.test/1.jpg'], "not CSV"),
        ("csv", ["url,label"], "lists no address"),
        ("json", ["[]"], "neither a .csv nor a .txt"),
    ],
)
def test_wrong_list(place: Places, suffix: str, lines: list[str], says: str) -> None:
    with pytest.raises(StageError, match=says):
        list(web.parts(place(*lines, suffix=suffix, label=None)))


def test_list_that_is_not_there_or_not_text(place: Places, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"http://a.test/\xe4.jpg")
    for name in ("none", "latin"):
        for read in (web.seen, lambda p: list(web.parts(p))):
            with pytest.raises(StageError, match="no list of web addresses in UTF-8"):
                read(place(where=f"web:{tmp_path}/{name}.txt"))


def test_seen_changes_with_the_list(place: Places) -> None:
    first = web.seen(place("http://a.test/1.jpg"))
    assert first == web.seen(place("http://a.test/1.jpg"))
    assert len({first, web.seen(place("http://a.test/2.jpg")), web.seen(place(where="http://a.test/1.jpg"))}) == 3


def test_what_was_covered_is_not_fetched_again(site: Site, place: Places, jpeg: Jpeg) -> None:
    a, b = site.put("/a.jpg", jpeg(1)), site.put("/b.jpg", jpeg(2))
    (first,) = web.parts(place(a))
    assert [item.origin for item in fetch(place(a, b, covered=first.covers))] == [b]
    assert site.asked() == ["/b.jpg"]
    assert [item.label for item in fetch(place(a, covered=first.covers, label="real"))] == ["real"]
    assert fetch(place(a, covered=first.covers)) == []
    (limited,) = web.parts(place(a, b, max_images=1))
    assert limited.covers == (), "it may stop early"


def test_who_stops_early_has_little_more_fetched(site: Site, place: Places, jpeg: Jpeg) -> None:
    urls = [site.put(f"/{n}.jpg", jpeg(n)) for n in range(100)]
    (part,) = web.parts(place(*urls, max_images=2))
    items = part.items()
    assert [next(items).origin for _ in range(2)] == urls[:2]
    items.close()  # type: ignore[attr-defined]
    assert len(site.asked()) < 50


def test_an_image_on_pages_of_both_labels_is_given_for_each(site: Site, place: Places, jpeg: Jpeg) -> None:
    one, same, other = (site.put(f"/{n}", '<img src="logo.jpg">') for n in range(3))
    site.put("/logo.jpg", jpeg(1))
    items = fetch(place("url,label", f"{one},ai", f"{same},ai", f"{other},real", suffix="csv", label=None))
    assert [(item.label, item.page) for item in items] == [("ai", one), ("real", other)]
    assert len(site.asked("/logo.jpg")) == 1


# robots.txt


def test_robots_is_obeyed_and_fetched_once(
    site: Site, place: Places, jpeg: Jpeg, capsys: pytest.CaptureFixture[str]
) -> None:
    site.put("/robots.txt", "\ufeffUser-agent: *\nDisallow: /private/\nDisallow: /*.png$\n", "text/plain")
    for path in ("/a.jpg", "/private/b.jpg", "/private/c.jpg", "/d.png", "/e.jpg"):
        site.put(path, jpeg(3))
    page = site.put("/page", '<img src="private/c.jpg"><img src="d.png"><img src="e.jpg">')
    with served() as other:
        other.put("/robots.txt", "User-agent: *\nDisallow:\n\nUser-agent: trueframe\nDisallow: /no", "text/plain")
        moved = [site.redirect(f"/moved{n}", url) for n, url in enumerate(["/private/b.jpg", other.url("/no.jpg")])]
        items = fetch(place(site.url("/private/b.jpg"), site.url("/a.jpg"), page, *moved))
    assert [item.origin for item in items] == [site.url("/a.jpg"), site.url("/e.jpg")]
    assert sorted(site.asked()) == ["/a.jpg", "/e.jpg", "/moved0", "/moved1", "/page"]
    assert other.asked() == []
    assert site.asked("/robots.txt") == ["/robots.txt"]
    said = capsys.readouterr().out
    for path in ("/private/b.jpg", "/private/c.jpg", "/d.png"):
        assert f"{site.url(path)}: skipped: disallowed by {site.url('/robots.txt')}" in said
    assert f"{moved[1]}: skipped: redirects to {other.url('/no.jpg')}: disallowed" in said
    assert "web: 2 images; 5 of 7 addresses skipped" in said
    assert len(site.agents) == 1
    assert next(iter(site.agents)).startswith("Trueframe")


@pytest.mark.parametrize("status", [401, 403, 410, 500])
def test_robots_that_does_not_come(site: Site, place: Places, jpeg: Jpeg, status: int) -> None:
    site.put("/robots.txt", "", status=status)
    a, b = site.put("/a.jpg", jpeg(1)), site.put("/b.jpg", jpeg(2))
    if status == 410:
        assert len(fetch(place(a, b))) == 2
        return
    with pytest.raises(StageError, match="2 of 2 addresses didn't answer" if status == 500 else "disallowed by"):
        fetch(place(a, b))
    assert site.asked() == []
    assert len(site.asked("/robots.txt")) == (4 if status == 500 else 1), "once for both"
    del site.pages["/robots.txt"]
    assert len(fetch(place(a, b))) == 2


def test_robots_asks_for_too_long_a_delay(site: Site, place: Places, jpeg: Jpeg) -> None:
    site.put("/robots.txt", "User-agent: *\nCrawl-delay: 86400", "text/plain")
    with pytest.raises(StageError, match="asks for 86400 s between two requests"):
        fetch(place(site.put("/a.jpg", jpeg(1))))
    assert site.asked() == []


# The rate


@pytest.mark.parametrize("line", ["", "Crawl-delay: 0.3", "Request-rate: 10/3"])
def test_rate(site: Site, place: Places, jpeg: Jpeg, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polite, "INTERVAL", 0.0 if line else 0.3)
    site.put("/robots.txt", f"User-agent: *\n{line}", "text/plain")
    urls = [site.put(f"/{n}.jpg", jpeg(n)) for n in range(2)]
    page = site.put("/page", f'<img src="{urls[1]}">')
    fetch(place(site.redirect("/moved.jpg", urls[0]), page))
    assert [path for path, _ in site.log] == ["/robots.txt", "/moved.jpg", "/0.jpg", "/page", "/1.jpg"]
    assert sum(site.gaps()) > 3.5 * 0.3, "of 4"


def test_hosts_do_not_wait_for_each_other_and_order_stays(
    site: Site, place: Places, jpeg: Jpeg, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polite, "INTERVAL", 0.3)
    names.update({f"{name}.test": ["127.0.0.1"] for name in "abc"})
    for n in range(3):
        site.put(f"/{n}.jpg", jpeg(n))
    urls = [site.url(f"/{n}.jpg", f"{name}.test") for n in range(3) for name in "ab"] + [site.url("/0.jpg", "c.test")]
    assert [item.origin for item in fetch(place(*urls))] == urls
    assert site.hosts.index(f"c.test:{site.port}") < len(site.hosts) - 3, "before the others were done"


@pytest.mark.parametrize(("status", "kind"), [(429, "seconds"), (503, "date")])
def test_retry_after(site: Site, place: Places, jpeg: Jpeg, status: int, kind: str) -> None:
    # A date has whole seconds, of which part has gone by.
    then = format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3), usegmt=True)
    url = site.put("/a.jpg", "wait", status=status, Retry_After="1" if kind == "seconds" else then)
    refuse = site.pages["/a.jpg"]

    def answer(request: BaseHTTPRequestHandler) -> None:
        refuse(request)
        site.put("/a.jpg", jpeg(1))

    site.pages["/a.jpg"] = answer
    assert len(fetch(place(url))) == 1
    assert site.asked() == ["/a.jpg", "/a.jpg"]
    assert site.gaps()[-1] > 0.8


def test_retry_after_longer_than_anyone_waits(site: Site, place: Places, jpeg: Jpeg) -> None:
    a, b = site.put("/a.jpg", jpeg(1)), site.put("/b.jpg", "later", status=429, Retry_After="3600")
    with pytest.raises(StageError, match=r"2 of 3 addresses didn't answer .*asks to come back in 3\d\d\d s"):
        fetch(place(a, b, site.put("/c.jpg", jpeg(2))))
    assert site.asked() == ["/a.jpg", "/b.jpg"], "the host is left alone"


# Only public addresses


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]", "2130706433", "0x7f000001", "127.1", "017700000001"),
        *("[::ffff:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::127.0.0.1]", "[64:ff9b:1::1]"),
        *("10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.0.8"),
        *("[fe80::1]", "[fd00::1]", "[fec0::1]", "[ff0e::1]", "[2001:0:7f00:1::]", "both.test"),
    ],
)
def test_private_address(site: Site, place: Places, names: dict[str, Any], internet: list[str], host: str) -> None:
    names["both.test"] = [PUBLIC, "10.0.0.1"]
    with pytest.raises(StageError, match=r"(no public address|there is no host)"):
        fetch(place(site.url("/a.jpg", host), private=False))
    assert internet == []


@pytest.mark.parametrize("ip", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", f"64:ff9b::{PUBLIC}"])
def test_public_address(ip: str) -> None:
    assert addresses.is_public(ip)


def test_redirect_to_a_private_address(
    site: Site, place: Places, jpeg: Jpeg, internet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    secret = site.put("/secret.jpg", jpeg(1))
    site.redirect("/door.jpg", secret)
    site.put("/a.jpg", jpeg(2))
    site.put("/page", f'<img src="{secret}"><img src="/door.jpg"><img src="/a.jpg">')
    (item,) = fetch(place(site.url("/page", "public.test"), private=False))
    assert item.data == jpeg(2)
    assert set(internet) == {PUBLIC}
    assert set(site.hosts) == {f"public.test:{site.port}"}
    said = capsys.readouterr().out
    door = site.url("/door.jpg", "public.test")
    assert f"{door}: skipped: redirects to {secret}: 127.0.0.1 is at 127.0.0.1, which is no public address" in said
    assert f"{secret}: skipped: 127.0.0.1 is at 127.0.0.1, which is no public address" in said

    site.log.clear()
    site.redirect("/robots.txt", secret)
    with pytest.raises(StageError, match=r"redirects to .*/secret.jpg: 127.0.0.1 is at .* no public address"):
        fetch(place(site.url("/a.jpg?", "public.test"), private=False))
    assert site.asked() == []


def test_name_that_changes_its_address(
    site: Site, place: Places, jpeg: Jpeg, names: dict[str, Any], internet: list[str]
) -> None:
    """DNS rebinding: each look-up is checked, and what was checked is what is connected to."""
    answers = iter([PUBLIC])
    names["rebind.test"] = lambda: [next(answers, "127.0.0.1")]
    site.put("/robots.txt", "User-agent: *\nAllow: /", "text/plain")
    with pytest.raises(StageError, match=r"rebind.test is at 127.0.0.1, which is no public address"):
        fetch(place(site.url("/a.jpg", "rebind.test"), private=False))
    assert internet == [PUBLIC]
    assert site.asked() == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://user:secret@127.0.0.1/a.jpg", "credentials are refused"),
        ("https://user@127.0.0.1/a.jpg", "credentials are refused"),
        ("file:///etc/hostname", "no address of the web"),
        ("http://", "no address of the web"),
        ("http://[::1/a.jpg", "no valid address"),
        ("http://" + "a" * 70 + ".test/a.jpg", "there is no host|no valid address"),
    ],
)
def test_refused_addresses_do_not_stop_others(site: Site, place: Places, jpeg: Jpeg, url: str, says: str) -> None:
    assert len(fetch(place(url, site.put("/a.jpg", jpeg(1))))) == 1
    for wrong in (url, site.redirect("/moved.jpg", url)):
        with pytest.raises(StageError, match=rf"no image could be fetched \(.*({says}|Invalid)"):
            fetch(place(wrong))


def test_redirects_end(site: Site, place: Places, jpeg: Jpeg) -> None:
    for n in range(6):
        site.redirect(f"/{n}", f"/{n + 1}")
    site.put("/6", jpeg(1))
    assert len(fetch(place(site.url("/1")))) == 1
    with pytest.raises(StageError, match="more than 5 redirects"):
        fetch(place(site.url("/0")))


def test_proxies_of_the_environment_are_not_used(
    site: Site, place: Places, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert len(fetch(place(site.put("/a.jpg", jpeg(1))))) == 1


def certificate(path: Path, name: str) -> ssl.SSLContext:
    """A certificate that vouches for itself, stored at `path`."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, hour = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now - hour, now + hour)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_tls_is_checked_by_name_though_the_connection_is_by_address(
    place: Places, jpeg: Jpeg, tmp_path: Path, internet: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(certificate(tmp_path / "tls.pem", "public.test")) as secure:
        secure.put("/a.jpg", jpeg(1))
        url = f"https://public.test:{secure.port}/a.jpg"
        with pytest.raises(StageError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(place(url, private=False))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "tls.pem"))
        with pytest.raises(StageError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(place(url.replace("public.test", "localhost")))
        assert secure.log == []
        (item,) = fetch(place(url, private=False))
        assert item.data == jpeg(1)


# What comes, and what doesn't


def unsized(data: bytes, *, rest: float = 0.0, size: int = 65536, length: int | None = None) -> Answer:
    """An answer that doesn't say how long it is, or isn't as long as it says."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "image/jpeg")
        request.send_header("Connection", "close")
        if length is not None:
            request.send_header("Content-Length", str(length))
        request.end_headers()
        for start in range(0, len(data), size):
            request.wfile.write(data[start : start + size])
            time.sleep(rest)
        request.close_connection = True

    return answer


@pytest.mark.parametrize("says_so", [True, False])
def test_too_large_an_image(site: Site, place: Places, jpeg: Jpeg, says_so: bool) -> None:
    data = jpeg(1) + b"\0" * 2**20
    url = site.put("/large.jpg", data)
    if not says_so:
        site.pages["/large.jpg"] = unsized(data)
    for _ in range(2):
        assert fetch(place(url)) == [Item(None, url, "ai")]
    assert site.asked() == ["/large.jpg"]
    assert fetch(place(url, max_file_mb=2)) == [Item(data, url, "ai")]


def test_too_large_a_page(site: Site, place: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polite, "PAGE_BYTES", 2**20)
    with pytest.raises(StageError, match="a page of more than 1 MB"):
        fetch(place(site.put("/page", "<p>" * 2**20), max_file_mb=100))


def test_types(site: Site, place: Places, jpeg: Jpeg, capsys: pytest.CaptureFixture[str]) -> None:
    site.put("/vector", b"<svg/>", "image/svg+xml; charset=utf-8")
    site.put("/soft404.jpg", "<p>not found</p>")
    site.put("/film", b"\0\0", "video/mp4")
    site.put("/bytes", jpeg(1), "application/octet-stream")
    site.put("/upper", jpeg(3), "Image/JPEG;q=1")
    paths = ["vector", "soft404.jpg", "film", "bytes", "upper"]
    page = site.put("/page", "".join(f'<img src="{path}">' for path in paths))
    assert [item.origin for item in fetch(place(page))] == [site.url("/bytes"), site.url("/upper")]
    said = capsys.readouterr().out
    assert f"{site.url('/soft404.jpg')}: skipped: a page, not an image" in said
    assert f"{site.url('/film')}: skipped: video/mp4, neither a page nor an image" in said
    assert "3 of 6 addresses skipped" in said


def test_a_failed_run_goes_on_where_it_was(site: Site, place: Places, jpeg: Jpeg, tmp_path: Path) -> None:
    page = site.put("/page", '<img src="a.jpg"><img src="b.jpg"><img src="c.jpg"><img src="none.jpg">')
    for seed, name in enumerate("abc"):
        site.put(f"/{name}.jpg", jpeg(seed))
    site.pages["/b.jpg"] = unsized(jpeg(1)[:500], length=len(jpeg(1)))
    with pytest.raises(StageError, match=r"1 of 5 addresses didn't answer \(.*broken.*run the same command again"):
        fetch(place(page))
    assert len(site.asked("/b.jpg")) == 4
    assert not list((tmp_path / "downloads").glob(".*")), "nothing half-written"
    site.log.clear()
    site.put("/b.jpg", jpeg(1))
    assert [item.data for item in fetch(place(page))] == [jpeg(seed) for seed in range(3)]
    assert site.asked() == ["/b.jpg", "/none.jpg"]


def test_an_answer_that_never_ends(site: Site, place: Places, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polite, "TOTAL_TIMEOUT", 0.5)
    monkeypatch.setattr(polite, "PAUSES", ())
    site.put("/slow.jpg", b"")
    site.pages["/slow.jpg"] = unsized(bytes(1000), rest=0.05, size=1)
    began = time.monotonic()
    with pytest.raises(StageError, match=r"1 of 2 addresses didn't answer.*not done within 0.5 s"):
        fetch(place(site.put("/a.jpg", jpeg(1)), site.url("/slow.jpg")))
    assert time.monotonic() - began < 30, "of the 50 that the server takes"


def test_nobody_there(site: Site, place: Places, jpeg: Jpeg, names: dict[str, Any]) -> None:
    def unknown(number: int) -> Callable[[], list[str]]:
        def fail() -> list[str]:
            raise socket.gaierror(number, "no")

        return fail

    names |= {"never.test": unknown(socket.EAI_NONAME), "later.test": unknown(socket.EAI_AGAIN)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    a = site.put("/a.jpg", jpeg(1))
    assert len(fetch(place("http://never.test/a.jpg", a))) == 1
    with pytest.raises(StageError, match=r"1 of 2 addresses didn't answer.*later.test can't be resolved now"):
        fetch(place("http://later.test/a.jpg", a))
    with pytest.raises(StageError, match=r"1 of 2 addresses didn't answer.*refused"):
        fetch(place(f"http://127.0.0.1:{port}/a.jpg", a))


def test_nothing_there(site: Site, place: Places) -> None:
    with pytest.raises(StageError, match=r"no image could be fetched \(.*/a.jpg: HTTP 404; .*/b.jpg: HTTP 410\)"):
        fetch(place(site.url("/a.jpg"), site.put("/b.jpg", "", status=410)))
    noise = site.put("/noise", bytes(range(256)) * 10, "text/html; charset=nonsense")
    with pytest.raises(StageError, match=re.escape("no image could be fetched (its pages show none)")):
        fetch(place(noise, site.put("/page", "<p>words</p>")))
