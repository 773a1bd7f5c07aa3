"""The door to the review, without a browser: how often a key is tried, and what a session is."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import requests

pytest.importorskip("gradio", reason="gradio is not installed")

from fastapi import FastAPI
from starlette.testclient import TestClient

from components.serve.page import reviewers
from components.serve.page.reviewers import Reviewers

KEY = "a key that nobody guesses"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def door() -> Any:
    people = Reviewers([f"anna:{KEY}"])
    app = FastAPI()
    people.add_door(app)

    @app.get("/review/")
    def inside() -> str:
        return "inside"

    return people.guard(app)


def test_keys_that_come_slowly_and_at_once_are_counted_when_they_begin(door: Any) -> None:
    async def statuses() -> list[int]:
        go = asyncio.Event()

        async def slowly(n: int) -> AsyncIterator[bytes]:
            yield b"key="
            await go.wait()
            yield b"guess %d" % n

        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://page") as client:
            asked = [
                asyncio.create_task(client.post("/review/key", content=slowly(n), headers=FORM)) for n in range(50)
            ]
            await asyncio.sleep(0.3)
            go.set()
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    with ThreadPoolExecutor(1) as thread:  # the browser's tests have a loop in this one
        found = thread.submit(asyncio.run, statuses()).result()
    assert (found.count(401), found.count(429)) == (10, 40)


def test_a_right_key_costs_no_try(door: Any) -> None:
    client = TestClient(door, follow_redirects=False)
    assert {client.post("/review/key", data={"key": KEY}).status_code for _ in range(30)} == {303}
    assert client.post("/review/key", data={"key": "x" * 5000}).status_code == 413
    tried = [client.post("/review/key", data={"key": f"guess {n}"}).status_code for n in range(10)]
    assert tried == [401] * 9 + [429], "what is too long to be a key is a try too"


def test_a_session_ends_after_twelve_hours(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(reviewers, "time", SimpleNamespace(monotonic=lambda: now))
    client = TestClient(door, follow_redirects=False)
    entered = client.post("/review/key", data={"key": f"anna:{KEY}"})
    assert "max-age=43200;" in entered.headers["set-cookie"].lower()
    token = {"cookie": entered.headers["set-cookie"].partition(";")[0]}  # a thief's would not go by itself
    client.cookies.clear()
    now += 12 * 3600 - 1
    assert client.get("/review/", headers=token).text == '"inside"'
    now += 1
    assert client.get("/review/", headers=token).headers["location"] == "key"


def test_over_tls_the_cookie_is_for_tls_alone(door: Any, served: Callable[[Any], Any]) -> None:
    with served(door) as url:

        def cookie(**headers: str) -> str:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = requests.post(f"{url}/review/key", {"key": KEY}, headers=named, timeout=60, allow_redirects=False)
            return answer.headers["set-cookie"].lower()

        assert "httponly" in cookie() and "samesite=strict" in cookie() and "secure" not in cookie()
        assert "; secure" in cookie(X_Forwarded_Proto="https", X_Forwarded_For="203.0.113.9")
