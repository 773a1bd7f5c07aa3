"""Polite fetching: what robots.txt allows, at one rate a host, with retries and limits; what came is kept."""

import hashlib
import json
import os
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin

import certifi
import urllib3
from protego import Protego
from urllib3.exceptions import ConnectTimeoutError, DecodeError, HTTPError, InvalidHeader, NewConnectionError, SSLError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Url

from components import stage
from components.ingest.web import addresses
from components.ingest.web.addresses import Later, Skip

INTERVAL = 1.0  # s between two requests to one host, at least
PAUSES = (1.0, 2.0, 4.0)  # s before an address that didn't answer is tried again
LONGEST_WAIT = 120.0  # s; a host that asks for more is left alone
TIMEOUT = urllib3.Timeout(connect=10.0, read=30.0)
TOTAL_TIMEOUT = 600.0  # s for the content of an answer
PAGE_BYTES = 10 * 2**20
REDIRECTS = 5
HOSTS_AT_ONCE = 8

_AGENT = "Trueframe"
_HEADERS = {"User-Agent": f"{_AGENT} (collects images that its user lists)"}
_PAGES = ("text/html", "application/xhtml+xml")
_UNSURE = ("", "application/octet-stream", "binary/octet-stream")
_TRANSIENT = (408, 425, 429)


@dataclass(frozen=True)
class Answer:
    """What an address gave: `url` is where its redirects ended; `data` is None for an image above the limit."""

    url: str
    is_page: bool
    data: bytes | None


@dataclass
class _Host:
    """When a host may be asked, by the clock `time.monotonic`; the lock is held while it is."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    last: float = 0.0


class Fetcher:
    """Fetches addresses into a folder; what is there isn't asked for again.

    Attributes:
        asked: all of them.
        skipped: those that are left out for good, and why.
        late: those that may answer another time, and why not now.
    """

    def __init__(self, folder: Path, max_bytes: int, *, private: bool) -> None:
        self.folder, self.max_bytes, self.private = folder, max_bytes, private
        self.asked: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.late: dict[str, str] = {}
        self._hosts: dict[str, _Host] = {}
        self._robots: dict[str, Protego | str] = {}  # by site; a text says why there is no answer
        self._stopped = threading.Event()
        self._pools = urllib3.PoolManager(
            timeout=TIMEOUT, retries=False, ca_certs=os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where()
        )

    def fetch(self, urls: Iterable[str]) -> None:
        """Fetch those that are new: from several hosts at once, but from one host one after another."""
        by_site: dict[str, list[str]] = {}
        for url in dict.fromkeys(urls):
            if url not in self.asked:
                by_site.setdefault("/".join(url.split("/", 3)[:3]), []).append(url)
        with ThreadPoolExecutor(HOSTS_AT_ONCE) as threads:
            try:
                list(threads.map(self._fetch, by_site.values()))
            except BaseException:
                self._stopped.set()
                raise
        self.asked.update(*by_site.values())

    def answer(self, url: str) -> Answer | None:
        """What an address gave, if it did."""
        if url in self.skipped or url in self.late:
            return None
        head, _, data = self._path(url).read_bytes().partition(b"\n")
        final, is_page, is_larger = json.loads(head)
        return Answer(final, is_page, None if is_larger else data)

    def skip(self, url: str, reason: str) -> None:
        """Leave an address out, and say so."""
        print(f"{url}: skipped: {reason}", flush=True)
        self.skipped[url] = reason

    def _path(self, url: str) -> Path:
        return self.folder / hashlib.sha256(f"{self.max_bytes} {url}".encode()).hexdigest()

    def _fetch(self, urls: list[str]) -> None:
        for url in urls:
            if self._stopped.is_set():
                return
            try:
                if not self._path(url).exists():
                    self._keep(url, self._tried(url))
            except Skip as skip:
                self.skip(url, str(skip))
            except Later as later:
                print(f"{url}: no answer: {later}", flush=True)
                self.late[url] = str(later)

    def _keep(self, url: str, answer: Answer) -> None:
        head = json.dumps([answer.url, answer.is_page, answer.data is None]).encode()
        stage.replace(self._path(url), lambda partial: partial.write_bytes(head + b"\n" + (answer.data or b"")))

    def _tried(self, url: str, *, is_robots: bool = False) -> Answer:
        for pause in PAUSES:
            try:
                return self._ask(url, is_robots)
            except Later as later:
                if not later.again:
                    raise
            self._sleep(pause)
        return self._ask(url, is_robots)

    def _ask(self, url: str, is_robots: bool) -> Answer:
        """Ask once, and follow redirects by hand, so that each step is checked like the first."""
        for hop in range(REDIRECTS + 1):
            try:
                parsed = addresses.parse(url)
                delay = 0.0 if is_robots else self._obey(parsed)
                with self._turn(parsed, delay) as host, self._send(parsed) as response:
                    target = response.get_redirect_location()
                    if not target:
                        _check(response, host)
                        return self._read(response, url, is_robots)
                url = urljoin(url, target)
            except Skip as skip:
                raise Skip(f"redirects to {url}: {skip}" if hop else str(skip), skip.status) from None
            except (HTTPError, ValueError) as error:
                raise _meaning(error) from None
        raise Skip(f"more than {REDIRECTS} redirects")

    def _obey(self, url: Url) -> float:
        """Heed the site's robots.txt, which is fetched once; gives the s between two requests that it asks for."""
        site = f"{url.scheme}://{url.netloc}"
        if site not in self._robots:
            self._robots[site] = self._read_robots(f"{site}/robots.txt")
        rules = self._robots[site]
        if isinstance(rules, str):
            raise Later(rules, again=False)
        if not rules.can_fetch(url.url, _AGENT):
            raise Skip(f"disallowed by {site}/robots.txt")
        rate = rules.request_rate(_AGENT)
        delay = max(rules.crawl_delay(_AGENT) or 0.0, rate.seconds / rate.requests if rate else 0.0)
        if delay > LONGEST_WAIT:
            raise Skip(f"{site}/robots.txt asks for {delay:g} s between two requests, too long to wait")
        return delay

    def _read_robots(self, url: str) -> Protego | str:
        try:
            data = self._tried(url, is_robots=True).data or b""
            return Protego.parse(data.decode("utf-8-sig", "replace"))
        except Later as later:
            return f"{url}: {later}"
        except Skip as skip:
            if skip.status is None:
                raise  # the host is out of the question
            return Protego.parse("User-agent: *\nDisallow: /" if skip.status in (401, 403) else "")

    @contextmanager
    def _turn(self, url: Url, delay: float) -> Iterator[_Host]:
        """One request at a time, and none too soon."""
        host = self._hosts.setdefault(url.host or "", _Host())
        with host.lock:
            pause = host.last + max(INTERVAL, delay) - time.monotonic()
            if pause > LONGEST_WAIT:
                raise Later(f"{url.host} asks to come back in {pause:.0f} s", again=False)
            self._sleep(pause)
            host.last = time.monotonic()
            yield host

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(max(0.0, seconds)):
            raise Later("stopped", again=False)

    def _send(self, url: Url) -> BaseHTTPResponse:
        for ip in addresses.resolve(url, private=self.private):
            # The very address that was checked: a name that gives another a moment later is no way round.
            name = {"server_hostname": (url.host or "").strip("[]")}
            pool = self._pools.connection_from_host(ip, url.port, url.scheme, name)
            try:
                headers = _HEADERS | {"Host": url.netloc or ""}
                return pool.urlopen("GET", url.request_uri, headers=headers, redirect=False, preload_content=False)
            except (NewConnectionError, ConnectTimeoutError) as error:
                last = error
        raise last

    def _read(self, response: BaseHTTPResponse, url: str, is_robots: bool) -> Answer:
        media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        is_page = is_robots or media in _PAGES
        if not (is_page or media in _UNSURE or media.startswith("image/")) or media.startswith("image/svg"):
            raise Skip(f"{media}, neither a page nor an image that is read here")
        data = self._content(response, PAGE_BYTES if is_page else self.max_bytes)
        if is_page and data is None:
            raise Skip(f"a page of more than {PAGE_BYTES // 2**20} MB")
        return Answer(url, is_page, data)

    def _content(self, response: BaseHTTPResponse, limit: int) -> bytes | None:
        """None if it is larger than the limit."""
        end = time.monotonic() + TOTAL_TIMEOUT
        data = bytearray()
        while chunk := response.read1(2**16):
            data += chunk
            if len(data) + (response.length_remaining or 0) > limit:
                return None
            if time.monotonic() > end or self._stopped.is_set():
                raise Later(f"not done within {TOTAL_TIMEOUT:g} s")
        return bytes(data)


def _check(response: BaseHTTPResponse, host: _Host) -> None:
    status = response.status
    if status in _TRANSIENT or status >= 500:
        with suppress(InvalidHeader, ValueError, OverflowError):
            host.last += urllib3.Retry().get_retry_after(response) or 0.0
        raise Later(f"HTTP {status}")
    if status != 200:
        raise Skip(f"HTTP {status}", status)


def _meaning(error: HTTPError | ValueError) -> Skip | Later:
    """What a failed request means for its address."""
    reason = error.args[0] if error.args else type(error).__name__
    is_final = isinstance(error, SSLError | DecodeError | ValueError) and not isinstance(reason, ssl.SSLEOFError)
    return Skip(str(reason)) if is_final else Later(str(reason))
