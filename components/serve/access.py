"""Who may ask, how often, and the headers with every answer: for the gateway and for the page."""

import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.stage import StageError

Headers = Sequence[tuple[bytes, bytes]]
_CALLERS = 10_000  # that a rate limit remembers
BASIC: Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
"""For whatever a browser may show."""


class Keys:
    """Keys of which only the SHA-256 is kept.

    Args:
        keys: each as it is.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, said: str) -> int | None:
        """Which of the keys it is. All are compared, and each in constant time, so that the time tells nothing."""
        digest = _digest(said)
        return max((at for at, known in enumerate(self._digests) if hmac.compare_digest(digest, known)), default=None)


def keys(variable: str) -> list[str]:
    """The keys that the environment names: in a variable, or in the file that `<variable>_FILE` names.

    Raises:
        StageError: the file can't be read, or there is no key where one was meant to be.
    """
    in_file = f"{variable}_FILE"
    if variable not in os.environ and in_file not in os.environ:
        return []
    text = os.environ.get(variable, "")
    if in_file in os.environ:
        path = Path(os.environ[in_file])
        try:
            text += "\n" + path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise StageError(f"{path}: the keys can't be read ({error}); correct {in_file}") from None
    found = text.replace(",", " ").split()
    if not found:
        raise StageError(f"{variable} and {in_file} name no key; unset them to do without")
    return found


class Rate:
    """A bucket for each caller that a minute fills; a large request may leave a debt.

    Args:
        limit: in a minute.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when

    def wait(self, caller: str) -> float:
        """s until the caller may ask again; 0 for now."""
        return max(0.0, (1 - self._left(caller)) * 60 / self._limit)

    def take(self, caller: str, n: int = 1) -> None:
        """Count."""
        self._buckets[caller] = (self._left(caller) - n, time.monotonic())
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)

    def _left(self, caller: str) -> float:
        left, then = self._buckets.get(caller, (float(self._limit), 0.0))
        return min(float(self._limit), left + (time.monotonic() - then) * self._limit / 60)


def with_headers(app: Any, headers: Headers) -> Any:
    """An ASGI application whose answers all have these headers."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await app(scope, receive, sending)

    return wrapped


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
