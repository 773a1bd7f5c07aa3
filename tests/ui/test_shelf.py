"""What a visitor leaves on the page's disk."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from components.serve import page
from components.serve.page import Shelf


def test_files_go_after_their_time(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", 60)
    first = shelf.put("a.png", b"a")
    assert shelf.find("a.png") == first
    assert shelf.find("../../etc/passwd") is None and shelf.find("b.png") is None
    os.utime(first, (time.time() - 61,) * 2)
    assert shelf.find("a.png") is None
    shelf.put("b.png", b"b")
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["b.png"]


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_ROOM", 10)
    shelf = Shelf(tmp_path, 60)
    for age, name in enumerate(("new", "older", "oldest")):
        os.utime(shelf.put(name, b"xxx"), (time.time() - 10 * age,) * 2)
    shelf.put("last", b"xxxx")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "older", "last"}


def test_uploads_end_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    monkeypatch.setattr(page, "_ROOM", 10)
    client = TestClient(page._within(page.Limits(), tmp_path, PlainTextResponse("taken")))
    assert client.post("/gradio_api/upload").status_code == 200
    (tmp_path / "some").mkdir()
    (tmp_path / "some/picture.jpg").write_bytes(bytes(11))
    refused = client.post("/gradio_api/upload")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "600")
    assert client.post("/gradio_api/queue/join").status_code == 200


def test_a_request_without_files_is_small(tmp_path: Path) -> None:
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    async def takes(scope: Any, receive: Any, send: Any) -> None:
        body = await Request(scope, receive).body()
        await PlainTextResponse(str(len(body)))(scope, receive, send)

    client = TestClient(page._within(page.Limits(), tmp_path, takes))
    assert client.post("/gradio_api/queue/join", content=bytes(2**20)).text == str(2**20)
    assert client.post("/gradio_api/queue/join", content=bytes(2**20 + 1)).status_code == 413
    with pytest.raises(ClientDisconnect):  # of unsaid length
        client.post("/gradio_api/queue/join", content=(bytes(2**19) for _ in range(3)))
