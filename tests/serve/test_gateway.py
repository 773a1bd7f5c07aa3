"""The gateway with a real detector: what is let in, what is refused, and how."""

import asyncio
import contextlib
import gzip
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fuzz
import pytest
import requests
import served
import uvicorn

from components.params import Serve
from components.serve import gateway
from components.serve.detector import FIELDS, Detector
from components.serve.gateway import Gateway
from components.serve.queue import CALLS
from components.stage import StageError

GOOD = served.picture(1)


@dataclass
class Running:
    """A server in a thread."""

    port: int
    loop: asyncio.AbstractEventLoop
    gateway: Gateway = field(default=None)  # type: ignore[assignment]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def ask(self, *files: Any, **params: Any) -> requests.Response:
        rows = [{"image": served.encoded(file) if isinstance(file, bytes) else file} for file in files]
        return requests.post(f"{self.url}/invocations", json={"dataframe_records": rows, "params": params}, timeout=60)

    def post(self, body: bytes | str, media: str = "application/json", path: str = "/invocations") -> requests.Response:
        return requests.post(f"{self.url}{path}", body, headers={"Content-Type": media}, timeout=60)

    def metric(self, name: str) -> float:
        lines = requests.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)


class Held:
    """A detector that keeps its answers until it is let go."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.go = detector, threading.Event()

    def score(self, files: list[Any], **options: Any) -> list[dict[str, Any]]:
        self.go.wait()
        return self.detector.score(files, **options)


@contextlib.contextmanager
def running(app: Any, front: Gateway | None = None, **options: Any) -> Iterator[Running]:
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", **options))
    listening = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()
    made: list[Running] = []

    async def main() -> None:
        made.append(Running(listening.getsockname()[1], asyncio.get_running_loop(), front))
        async with front.open() if front else contextlib.nullcontext():
            started.set()
            await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield made[0]
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Running]:
    """MLflow's scoring server, in this process."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    loaded = mlflow.pyfunc.load_model(str(served.packed(folder)))
    with running(scoring_server.init(loaded)) as server:
        yield server


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    return Detector(folder / "detector.onnx", "7")


@pytest.fixture
def front(detector: Detector) -> Iterator[Callable[..., Running]]:
    """A gateway with settings of its own."""
    with contextlib.ExitStack() as stack:

        def make(score: Callable[..., Any] = detector.score, keys: tuple[str, ...] = (), **settings: Any) -> Running:
            made = Gateway(score, "7", Serve.model_validate(settings), keys)
            options = {"http": gateway.protocol(made.settings.read_s)}
            return stack.enter_context(running(made.app, made, **options))

        yield make


@pytest.fixture
def held(detector: Detector) -> Iterator[Held]:
    """The detector, which answers when it is let go."""
    held = Held(detector)
    yield held
    held.go.set()


def refused(answer: requests.Response, status: int, says: str) -> None:
    """One line of JSON, and nothing of the inside."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and says in answer.json()["error"], answer.text
    assert answer.text.count("\n") == 1 and "Traceback" not in answer.text and "site-packages" not in answer.text


def test_rows_are_those_of_the_detector(front: Callable[..., Running], detector: Detector) -> None:
    files = [served.picture(n, kind) for n, kind in enumerate(("JPEG", "PNG", "WEBP"))]
    mixed = [files[0], "no base64!", files[1], served.encoded(b"no image"), 7, None, ["x"], files[2], {"a": 1}]
    rows = front().ask(*mixed).json()["predictions"]
    assert [bool(row["error"]) for row in rows] == [False, True, False, True, True, True, True, False, True]
    assert all(list(row) == list(FIELDS) for row in rows)
    own = detector.score(files)
    for said, row in zip([rows[0], rows[2], rows[7]], own, strict=True):
        assert said["probability"] == pytest.approx(row["probability"], abs=1e-5)
        assert {k: said[k] for k in ("label", "verdict", "provenance", "warnings")} == {
            k: row[k] for k in ("label", "verdict", "provenance", "warnings")
        }


def test_what_a_body_may_be(front: Callable[..., Running]) -> None:
    server = front()
    image = served.encoded(GOOD)
    split = {"dataframe_split": {"columns": ["id", "image"], "data": [[1, image], [2], 3]}}
    rows = server.post(json.dumps(split)).json()["predictions"]
    assert [bool(row["error"]) for row in rows] == [False, True, True]
    assert server.post('{"dataframe_records": []}').json() == {"predictions": []}
    rows = server.post(json.dumps({"dataframe_records": [{"image": image, "more": 1}, 5, {}]})).json()["predictions"]
    assert [bool(row["error"]) for row in rows] == [False, True, True]


def test_a_threshold_moves_label_and_band(front: Callable[..., Running]) -> None:
    server = front()
    [usual] = server.ask(GOOD).json()["predictions"]
    p = usual["probability"]
    [below], [above] = (server.ask(GOOD, threshold=t).json()["predictions"] for t in (p / 4, 1 - (1 - p) / 4))
    assert (below["label"], below["verdict"]) == ("ai", "ai") and below["threshold"] == pytest.approx(p / 4)
    assert (above["label"], above["verdict"]) == ("real", "real")
    assert below["probability"] == pytest.approx(p, abs=1e-6)
    for wrong in (2, -0.1, "x", True, [1]):
        refused(server.ask(GOOD, threshold=wrong), 400, "threshold has to be a number from 0 to 1")


def test_explain(front: Callable[..., Running]) -> None:
    server = front()
    [row] = server.ask(GOOD, explain=True).json()["predictions"]
    assert row["heatmap"] and "heatmap" not in server.ask(GOOD).json()["predictions"][0]
    refused(server.ask(GOOD, explain="yes"), 400, "explain has to be true or false")
    refused(server.ask(GOOD, explian=True), 400, "'explian'")


def test_files_as_they_are(front: Callable[..., Running]) -> None:
    server = front()
    want = server.ask(GOOD).json()["predictions"][0]
    for media in ("image/jpeg", "application/octet-stream"):
        [row] = server.post(GOOD, media, "/v1/check").json()["predictions"]
        assert row == {"file": None, **want}
    files = [("file", ("a.jpg", GOOD)), ("other", ("b.jpg", b"broken")), ("file", ("ü.png", served.picture(2, "PNG")))]
    answer = requests.post(f"{server.url}/v1/check", files=files, data={"threshold": "0.25"}, timeout=60)
    rows = answer.json()["predictions"]
    assert [row["file"] for row in rows] == ["a.jpg", "b.jpg", "ü.png"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert {row["threshold"] for row in rows} == {0.25}
    [row] = server.post(GOOD, "image/jpeg", "/v1/check?explain=true").json()["predictions"]
    assert row["heatmap"]
    refused(server.post(GOOD, "image/jpeg", "/v1/check?explain=maybe"), 400, "explain")
    refused(server.post(GOOD, "image/jpeg", "/v1/check?threshold=high"), 400, "threshold")
    refused(server.post(GOOD, "text/plain", "/v1/check"), 415, "text/plain")
    refused(server.post(GOOD, "multipart/form-data", "/v1/check"), 400, "boundary")
    refused(server.post(GOOD, "multipart/form-data; boundary=x", "/v1/check"), 400, "a damaged form")
    refused(requests.post(f"{server.url}/v1/check", files={"a": (None, "text")}, timeout=60), 400, "-F file=@photo.jpg")
    with socket.create_connection(("127.0.0.1", server.port), 20) as caller:
        caller.sendall(head(len(GOOD), "POST /v1/check", "Content-Type: image/jpeg", "Expect: 100-continue"))
        assert caller.recv(4096).startswith(b"HTTP/1.1 100 Continue")
        caller.sendall(GOOD)
        assert caller.recv(4096).startswith(b"HTTP/1.1 200 OK")
    chunks = (GOOD[start : start + 100] for start in range(0, len(GOOD), 100))
    answer = requests.post(f"{server.url}/v1/check", chunks, headers={"Content-Type": "image/jpeg"}, timeout=60)
    assert answer.json()["predictions"] == [{"file": None, **want}]


def test_every_form_of_body_gives_the_rows_that_mlflow_s_own_server_gives(
    front: Callable[..., Running], model: Running
) -> None:
    server = front()
    one, other = (served.encoded(served.picture(n)) for n in (1, 2))
    usual = server.post(json.dumps({"dataframe_records": [{"image": one}, {"image": other}]})).json()["predictions"]
    for body in (
        {"inputs": {"image": [one, other]}},
        {"inputs": [{"image": one}, {"image": other}]},
        {"inputs": [one, other]},
        {"instances": [{"image": one}, {"image": other}]},
        {"instances": [one, other]},
        {"instances": {"image": [one, other]}},
        {"dataframe_split": {"columns": ["image"], "data": [[one], [other]], "index": [5, 6]}},
    ):
        for asked in (server, model):
            rows = asked.post(json.dumps(body)).json()["predictions"]
            assert [row["probability"] for row in rows] == pytest.approx([row["probability"] for row in usual]), body
    [row] = server.post(json.dumps({"inputs": {"image": one}, "params": {"threshold": 0.25}})).json()["predictions"]
    assert row["threshold"] == 0.25 and row["probability"] == pytest.approx(usual[0]["probability"])
    rows = server.post(json.dumps({"instances": [one, 5, None, {"b64": one}, [one]]})).json()["predictions"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, True, True]
    assert server.post('{"inputs": []}').json() == {"predictions": []}


@pytest.mark.parametrize(
    "media",
    [
        "application/json; charset=utf-8",
        'APPLICATION/JSON; Charset="UTF-8"',
        "application/json;charset=ISO-8859-1",
        "text/json",
        "application/vnd.trueframe+json",
    ],
)
def test_json_under_its_other_names(front: Callable[..., Running], media: str) -> None:
    body = json.dumps({"dataframe_records": [{"image": served.encoded(GOOD)}]}).encode()
    for said in (body, b"\xef\xbb\xbf" + body):
        [row] = front().post(said, media).json()["predictions"]
        assert row["label"]


@pytest.mark.parametrize(
    "media", ["image/jpeg; charset=binary", "IMAGE/JPEG", "application/octet-stream", "image/*", None]
)
def test_files_under_their_other_names(front: Callable[..., Running], media: str | None) -> None:
    headers = {"Content-Type": media} if media else {}
    [row] = requests.post(f"{front().url}/v1/check", GOOD, headers=headers, timeout=60).json()["predictions"]
    assert row["label"]


def test_bodies_that_are_not_read_are_refused_by_name(front: Callable[..., Running]) -> None:
    server = front()
    body = json.dumps({"dataframe_records": [{"image": served.encoded(GOOD)}]}).encode()
    codings = {
        "gzip": gzip.compress,
        "X-GZIP": gzip.compress,
        "deflate": zlib.compress,
        "br, gzip": bytes,
        "zstd": bytes,
    }
    for coding, packed in codings.items():
        for path, media, content in (("/invocations", "application/json", body), ("/v1/check", "image/jpeg", GOOD)):
            headers = {"Content-Type": media, "CONTENT-ENCODING": coding}
            answer = requests.post(f"{server.url}{path}", packed(content), headers=headers, timeout=60)
            refused(answer, 415, f"Content-Encoding {coding.lower()}; this takes bodies that are not compressed")
    for coding in ("identity", "Identity", "", "identity, identity"):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        assert requests.post(f"{server.url}/invocations", body, headers=headers, timeout=60).status_code == 200
    twice = head(len(body), "POST /invocations", "Content-Encoding: identity", "Content-Encoding: gzip")
    with socket.create_connection(("127.0.0.1", server.port), 20) as caller:
        caller.sendall(twice + body)
        assert caller.recv(4096).startswith(b"HTTP/1.1 415")
    refused(server.post(body, "application/json; charset=utf-16"), 415, "JSON in utf-16; this takes UTF-8")
    refused(server.post(body, "application/x-www-form-urlencoded"), 415, "this takes application/json")
    refused(server.post(GOOD, "image/jpeg"), 415, "image/jpeg; this takes application/json, and /v1/check takes files")
    refused(server.post(body, "application/json", "/v1/check"), 415, "(/invocations takes JSON)")
    refused(server.post(GOOD, "multipart/mixed; boundary=x", "/v1/check"), 415, "multipart/mixed; this takes image/*")
    for method in ("GET", "HEAD", "OPTIONS", "PUT"):
        for path in ("/invocations", "/v1/check"):
            answer = requests.request(method, f"{server.url}{path}", timeout=60)
            assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"dataframe_records": ' * 50_000, 400, "not JSON"),
        (b'{"dataframe_records": [{"image": NaN}]}', 400, "not JSON"),
        (b'"text"', 400, "dataframe_records"),
        (b"[]", 400, "dataframe_records"),
        (b"{}", 400, "dataframe_records"),
        (b'{"params": {}}', 400, "dataframe_records"),
        (b'{"dataframe_records": 5}', 400, "dataframe_records"),
        (b'{"dataframe_records": {"image": "x"}}', 400, "dataframe_records"),
        (b'{"dataframe_split": {"columns": ["x"], "data": []}}', 400, '"columns": ["image"]'),
        (b'{"dataframe_split": {"columns": ["image", "image"], "data": []}}', 400, '"columns": ["image"]'),
        (b'{"dataframe_split": [["x"]]}', 400, '"columns": ["image"]'),
        (b'{"inputs": 5}', 400, "inputs has to be a list"),
        (b'{"inputs": {"picture": ["x"]}}', 400, "inputs has to be a list"),
        (b'{"instances": "x"}', 400, "instances has to be a list"),
        (b'{"inputs": ["x"], "instances": ["x"]}', 400, "dataframe_records"),
        (b'{"inputs": ["x"], "signature_name": "y"}', 400, "dataframe_records"),
        (b'{"image": "x"}', 400, "inputs or instances"),
        (b'{"dataframe_records": [], "params": [1]}', 400, "params"),
    ],
)
def test_what_is_no_body_is_one_line(front: Callable[..., Running], body: bytes, status: int, says: str) -> None:
    refused(front().post(body), status, says)


def test_other_ways_to_be_wrong(front: Callable[..., Running]) -> None:
    server = front(max_body_mb=1, max_images=4)
    refused(server.post(b"image", "text/csv"), 415, "text/csv")
    refused(requests.get(f"{server.url}/invocations", timeout=60), 405, "GET")
    refused(requests.get(f"{server.url}/nowhere", timeout=60), 404, "/nowhere")
    refused(server.post(b"x" * (2**20 + 1)), 413, "1 MiB")
    chunked = (b"x" * 2**16 for _ in range(40))
    with contextlib.suppress(requests.ConnectionError):  # it was still sending when it was told
        refused(requests.post(f"{server.url}/invocations", chunked, timeout=60), 413, "1 MiB")
    refused(server.ask(*[GOOD] * 5), 413, "5 images")
    assert server.ask(*[GOOD] * 4).status_code == 200
    many = [("file", (f"{n}.jpg", GOOD)) for n in range(5)]
    refused(requests.post(f"{server.url}/v1/check", files=many, timeout=60), 413, "")


def test_keys(front: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("two\nthree\n")
    monkeypatch.setenv(gateway.KEYS, "one")
    monkeypatch.setenv(f"{gateway.KEYS}_FILE", str(tmp_path / "keys"))
    server = front(keys=tuple(gateway.keys()))
    body = json.dumps({"dataframe_records": [{"image": served.encoded(GOOD)}]})

    def ask(**headers: str) -> requests.Response:
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return requests.post(f"{server.url}/invocations", body, headers=sent, timeout=60)

    for headers in ({"Authorization": "Bearer one"}, {"Authorization": "bearer three"}, {"X_API_Key": "two"}):
        assert ask(**headers).status_code == 200
    for headers in ({}, {"Authorization": "Bearer on"}, {"Authorization": "Basic one"}, {"X_API_Key": "ön"}):
        refused(ask(**headers), 401, "API key")
    assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
    for path in ("/metrics", "/version"):
        refused(requests.get(f"{server.url}{path}", timeout=60), 401, "API key")
        assert requests.get(f"{server.url}{path}", headers={"X-API-Key": "two"}, timeout=60).status_code == 200
    monkeypatch.setenv(f"{gateway.KEYS}_FILE", str(tmp_path / "none"))
    with pytest.raises(StageError, match="none"):
        gateway.keys()
    monkeypatch.delenv(f"{gateway.KEYS}_FILE")
    monkeypatch.setenv(gateway.KEYS, " ")
    with pytest.raises(StageError, match="no key"):
        gateway.keys()


def test_every_answer_has_the_headers(front: Callable[..., Running]) -> None:
    server = front()
    for answer in (server.ask(GOOD), server.post("[]"), requests.get(f"{server.url}/none", timeout=60)):
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_rate(front: Callable[..., Running]) -> None:
    server = front(rate=3, keys=("a", "b"))

    def ask(key: str, images: int) -> requests.Response:
        body = json.dumps({"dataframe_records": [{"image": served.encoded(GOOD)}] * images})
        headers = {"Content-Type": "application/json", "X-API-Key": key}
        return requests.post(f"{server.url}/invocations", body, headers=headers, timeout=60)

    assert ask("a", 5).status_code == 200  # it leaves a debt
    answer = ask("a", 1)
    refused(answer, 429, "3 images a minute")
    assert 30 < int(answer.headers["Retry-After"]) <= 62
    assert ask("b", 1).status_code == 200
    assert server.metric('trueframe_requests_total{route="/invocations",status="429"}') == 0  # needs a key itself


def test_what_is_too_much_is_turned_away_and_what_waits_is_put_together(
    front: Callable[..., Running], held: Held
) -> None:
    server = front(held.score, max_requests=12)
    with ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(server.ask, served.picture(n)) for n in range(CALLS)]
        until(lambda: server.metric("trueframe_call_images_count") == CALLS)  # no thread is free
        waiting += [threads.submit(server.ask, served.picture(n)) for n in range(CALLS, 12)]
        until(lambda: server.metric("trueframe_requests_waiting") == 12)
        assert requests.get(f"{server.url}/health/live", timeout=60).status_code == 200
        answer = server.ask(GOOD)
        refused(answer, 503, "12 requests are being answered")
        assert answer.headers["Retry-After"]
        held.go.set()
        rows = [done.result().json()["predictions"][0] for done in waiting]
    assert rows[3]["probability"] == pytest.approx(
        server.ask(served.picture(3)).json()["predictions"][0]["probability"]
    )
    assert server.metric("trueframe_call_images_sum") == 13
    assert server.metric("trueframe_call_images_count") == CALLS + 2, "what waited in one call, and one alone"
    assert requests.get(f"{server.url}/health", timeout=60).json() == {
        "live": True,
        "ready": True,
        "model_version": "7",
    }


def head(length: int, what: str = "POST /invocations", *headers: str) -> bytes:
    said = [
        f"{what} HTTP/1.1",
        "Host: x",
        *(headers or ["Content-Type: application/json"]),
        f"Content-Length: {length}",
    ]
    return ("\r\n".join(said) + "\r\n\r\n").encode()


def test_what_is_turned_away_is_told_so_before_its_body_is_read(front: Callable[..., Running], held: Held) -> None:
    server = front(held.score, max_requests=1, read_s=60, answer_s=60)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.ask, GOOD)
        until(lambda: server.metric("trueframe_requests_waiting") == 1)
        with socket.create_connection(("127.0.0.1", server.port), 20) as caller:
            caller.sendall(head(1000))
            assert caller.recv(4096).splitlines()[0].endswith(b"503 Service Unavailable")
        held.go.set()
        assert waiting.result().status_code == 200


def test_all_callers_together_hold_so_many_bytes_and_no_more(front: Callable[..., Running]) -> None:
    server = front(max_body_mb=1, read_s=60)
    size = 2**20
    with contextlib.ExitStack() as stack:

        def send(part: bytes) -> socket.socket:
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            caller.sendall(head(size) + part)
            return caller

        callers = [send(bytes(size - 1)) for _ in range(8)]
        until(lambda: server.gateway._held == 8 * (size - 1))
        said = b"".join(iter(partial(send(bytes(9)).recv, 4096), b""))  # it is hung up on
        assert said.splitlines()[0].endswith(b"503 Service Unavailable") and b"too much is being received" in said
        assert server.gateway._held == 8 * (size - 1)
        callers[0].sendall(b"x")  # one that is whole makes room
        assert callers[0].recv(4096).splitlines()[0].endswith(b"400 Bad Request")
        until(lambda: server.gateway._held == 7 * (size - 1))
        assert server.ask(GOOD).status_code == 200
    until(lambda: server.gateway._held == 0)


def test_what_nobody_thought_of_is_one_line_and_its_trace_is_logged(
    front: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = front()

    async def broken(*_: Any) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(server.gateway, "_score", broken)
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
    answer = server.ask(GOOD)
    refused(answer, 500, "something went wrong here; it is logged")
    assert "secret" not in answer.text and answer.headers["content-type"] == "application/json"
    until(lambda: "a secret of the inside" in caplog.text)


def test_what_brings_the_detector_into_trouble_fails_alone(front: Callable[..., Running], held: Held) -> None:
    bad = served.picture(5)

    def score(files: list[Any], **options: Any) -> list[dict[str, Any]]:
        rows = held.score(files, **options)
        if served.encoded(bad) in files:
            raise MemoryError("no room for its activations")
        return rows

    server = front(score)
    with ThreadPoolExecutor(12) as threads:
        answers = [threads.submit(server.ask, served.picture(n)) for n in range(12)]
        until(lambda: server.metric("trueframe_requests_waiting") == 12)
        held.go.set()
    statuses = [answer.result().status_code for answer in answers]
    assert statuses == [200] * 5 + [503] + [200] * 6
    refused(answers[5].result(), 503, "the detector failed")
    assert server.metric("trueframe_call_failures_total") >= 1


def test_who_isn_t_answered_in_time_is_told_so(front: Callable[..., Running], held: Held) -> None:
    server = front(held.score, answer_s=1)
    refused(server.ask(GOOD), 504, "no answer within 1 s")
    assert not server.gateway.queue.is_stuck
    with ThreadPoolExecutor(CALLS) as threads:
        for answer in threads.map(server.ask, [GOOD] * CALLS):
            refused(answer, 504, "no answer")
    until(lambda: server.gateway.queue.is_stuck)  # no thread comes back
    held.go.set()
    until(lambda: not server.gateway.queue.is_stuck)
    assert server.ask(GOOD).status_code == 200


def test_what_a_file_says_of_itself_may_be_anything(front: Callable[..., Running], detector: Detector) -> None:
    odd = {"software": "half a \ud83d pair", "seed": 2**70}
    server = front(lambda files, **options: [row | {"provenance": odd} for row in detector.score(files, **options)])
    rows = server.ask(GOOD, GOOD).json()["predictions"]
    assert [row["provenance"] for row in rows] == [odd, odd] and rows[0]["label"]


def test_who_is_told_to_leave_connects_anew(front: Callable[..., Running]) -> None:
    server = front()
    body = json.dumps({"dataframe_records": [{"image": served.encoded(GOOD)}]})
    with requests.Session() as caller:
        caller.headers["Content-Type"] = "application/json"
        assert caller.post(f"{server.url}/invocations", body).headers.get("connection") is None
        server.gateway.leave()
        assert caller.post(f"{server.url}/invocations", body).headers["connection"] == "close"


def test_large_requests_go_in_parts_and_keep_their_order(front: Callable[..., Running]) -> None:
    server = front()
    files = [served.picture(n, size=(16, 16)) for n in range(100)]
    files[50] = b"broken"
    rows = server.ask(*files).json()["predictions"]
    assert len(rows) == 100 and [n for n, row in enumerate(rows) if row["error"]] == [50]
    for n in (0, 31, 32, 99):
        [alone] = server.ask(files[n]).json()["predictions"]
        assert rows[n]["probability"] == pytest.approx(alone["probability"], abs=1e-5)
    assert server.metric('trueframe_images_total{verdict="error"}') == 1


def test_who_is_too_slow_is_cut_off(front: Callable[..., Running]) -> None:
    server = front(read_s=0.5)

    def answer(*parts: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), 30) as caller:
            said = b""
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    caller.sendall(part)
                    time.sleep(0.2)
                while more := caller.recv(4096):
                    said += more
            return said

    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
    assert answer() == b"", "who says nothing"
    assert answer(*[bytes([byte]) for byte in head[:20]]) == b"", "who spells the head"
    said = answer(head + b"\r\n", b"x", b"x")
    assert b"408" in said.splitlines()[0] and b'"error"' in said
    assert server.ask(GOOD).status_code == 200


def test_broken_files_from_the_fuzzer(front: Callable[..., Running]) -> None:
    """A share of the corpus, with a good image among every 31 broken ones; `benchmarks/serving.py` sends all of it."""
    server = front()
    broken = [data for number, (_, data) in enumerate(fuzz.corpus(each=6)) if len(data) < 2**20]
    good = server.ask(GOOD).json()["predictions"][0]
    for start in range(0, len(broken), 31):
        answer = server.ask(*broken[start : start + 31], GOOD)
        assert answer.status_code == 200 and "Traceback" not in answer.text
        *rows, last = answer.json()["predictions"]
        assert last["probability"] == pytest.approx(good["probability"], abs=1e-5)
        assert all((row["error"] is None) == (row["probability"] is not None) for row in rows)
        assert all(row["error"] is None or "\n" not in row["error"] for row in rows)


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
