"""The door to the review: a key, and then a cookie."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import Request

from components.serve.access import Keys, Rate, with_headers
from components.stage import StageError

PATH = "/review"
_COOKIE = "trueframe-review"
_LASTS = 12 * 3600  # s
_TRIES = 10  # keys a minute from one address
_SHORTEST = 16  # characters of a key
_LONGEST = 4096  # bytes of a form
_MOST = 1000  # people inside
_FORM = """<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Review</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;max-width:24rem;
margin:15vh auto;padding:0 1rem}}input,button{{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;
margin:.3rem 0}}</style><h1>Review</h1><form method=post><label>Key
<input type=password name=key autocomplete=current-password required autofocus></label><button>Enter</button></form>
<p role=alert>{problem}</p></html>"""
_INSIDE = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
)


class Reviewers:
    """Who may review. Nobody else reaches anything under `PATH`, whatever Gradio has there.

    Args:
        keys: `NAME:KEY` each, or `KEY`.

    Raises:
        StageError: a key is so short that it could be guessed.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        pairs = [said.rpartition(":") for said in keys]
        self._names = [name or "a reviewer" for name, _, _ in pairs]
        self._keys = Keys([key for _, _, key in pairs])
        if any(len(key) < _SHORTEST for _, _, key in pairs):
            raise StageError(
                f"a review key has fewer than {_SHORTEST} characters; "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'` makes a good one"
            )
        self._rate = Rate(_TRIES)
        self._inside: dict[str, tuple[str, float]] = {}

    def who(self, cookies: Mapping[str, str]) -> str | None:
        """The name of who sent these cookies; null for everyone else."""
        name, until = self._inside.get(cookies.get(_COOKIE, ""), ("", 0.0))
        return name if time.monotonic() < until else None

    def add_door(self, app: FastAPI) -> None:
        """Add the form that takes a key."""

        @app.get(f"{PATH}/key")
        def form() -> Response:
            return HTMLResponse(_FORM.format(problem=""))

        @app.post(f"{PATH}/key")
        async def enter(request: Request) -> Response:
            caller = request.client.host if request.client else "?"
            if self._rate.wait(caller):
                return HTMLResponse(_FORM.format(problem="Too many keys; wait a minute."), 429)
            self._rate.take(caller)  # before the body is here: others of the same caller wait for theirs meanwhile
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > _LONGEST:
                    return HTMLResponse(_FORM.format(problem="This is no key."), 413)
            [said, *_] = parse_qs(body.decode(errors="replace")).get("key", [""])
            found = self._keys.find(said.rpartition(":")[2].strip())
            if found is None:
                return HTMLResponse(_FORM.format(problem="This is no key."), 401)
            self._rate.take(caller, -1)
            token = secrets.token_urlsafe(32)
            self._inside[token] = self._names[found], time.monotonic() + _LASTS
            while len(self._inside) > _MOST:
                del self._inside[next(iter(self._inside))]
            answer = RedirectResponse("./", 303)
            secure = request.url.scheme == "https"
            answer.set_cookie(_COOKIE, token, _LASTS, httponly=True, samesite="strict", secure=secure)
            return answer

        @app.post(f"{PATH}/out")
        def leave(request: Request) -> Response:
            self._inside.pop(request.cookies.get(_COOKIE, ""), None)
            return RedirectResponse("key", 303)

    def guard(self, app: Any) -> Any:
        """An ASGI application of which everything under `PATH` is for them alone."""
        inside = with_headers(app, _INSIDE)

        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            path = scope.get("path", "")
            if scope["type"] == "lifespan" or not (path == PATH or path.startswith(f"{PATH}/")):
                await app(scope, receive, send)
            elif path == f"{PATH}/key" or self.who(Request(scope).cookies if scope["type"] == "http" else {}):
                await inside(scope, receive, send)
            elif path in (PATH, f"{PATH}/"):
                await RedirectResponse("key" if path.endswith("/") else "review/key", 303)(scope, receive, send)
            else:
                await Response("A key is needed.", 401)(scope, receive, send)

        return guarded
