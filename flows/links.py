"""Pictures by their link, for the web page: only from public addresses, within limits of size and time."""

import time
from urllib.parse import urljoin

import certifi
import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Url

from components.images import ImageError
from components.ingest.web import addresses
from components.ingest.web.addresses import Later, Skip

REDIRECTS = 5
SECONDS = 20.0  # for all of it
_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)
_HEADERS = {"User-Agent": "Trueframe (fetches a picture that a visitor names)", "Accept": "image/*"}


def fetch(url: str, max_bytes: int, *, private: bool = False) -> bytes:
    """A picture's file.

    Every step of a redirect is checked like the first, and the connection goes to the very address that was checked: a
    name that gives another a moment later is no way round.

    Args:
        url: http or https.
        max_bytes: of the file.
        private: whether addresses of private networks may be asked.

    Raises:
        ImageError: the address isn't public or doesn't answer, or what it gives is too large or no picture.
    """
    end = time.monotonic() + SECONDS
    pools = urllib3.PoolManager(timeout=_TIMEOUT, retries=False, ca_certs=certifi.where())
    try:
        for _ in range(REDIRECTS + 1):
            parsed = addresses.parse(url)
            with _send(pools, parsed, private) as response:
                target = response.get_redirect_location()
                if not target:
                    return _content(response, max_bytes, end)
            url = urljoin(url, target)
        raise ImageError(f"the link redirects more than {REDIRECTS} times")
    except (Skip, Later) as error:
        raise ImageError(f"the link can't be followed: {str(error).partition(';')[0]}") from None
    except (HTTPError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("the link doesn't answer") from None
    finally:
        pools.clear()


def _send(pools: urllib3.PoolManager, url: Url, private: bool) -> BaseHTTPResponse:
    last: Exception = ImageError("the link doesn't answer")
    for ip in addresses.resolve(url, private=private):
        pool = pools.connection_from_host(ip, url.port, url.scheme, {"server_hostname": (url.host or "").strip("[]")})
        headers = _HEADERS | {"Host": url.netloc or ""}
        try:
            return pool.urlopen("GET", url.request_uri, headers=headers, redirect=False, preload_content=False)
        except (NewConnectionError, ConnectTimeoutError) as error:
            last = error
    raise last


def _content(response: BaseHTTPResponse, max_bytes: int, end: float) -> bytes:
    if response.status != 200:
        raise ImageError(f"the link answers with HTTP {response.status}")
    media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media.startswith("text/") or media.startswith("image/svg"):
        raise ImageError(f"the link leads to {media}, not to a picture's file")
    data = bytearray()
    while chunk := response.read1(2**16):
        data += chunk
        if len(data) + (response.length_remaining or 0) > max_bytes:
            raise ImageError(f"the picture has more than {max_bytes / 2**20:.0f} MB")
        if time.monotonic() > end:
            raise ImageError(f"the link didn't give the picture within {SECONDS:.0f} s")
    return bytes(data)
