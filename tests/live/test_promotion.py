"""The registry on a real MLflow server: two people at once, the UI in a browser, and word of what was moved."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served
import yaml
from harness import ROOT, Project, free_port, stop

from components.register.registry import Registry, line

DOCS = ROOT / "docs/registry.md"


@pytest.fixture(autouse=True)
def here(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process and those that it starts use the server."""
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    mlflow.set_tracking_uri(mlflow_server)
    yield
    mlflow.set_tracking_uri(before)


def made(name: str, versions: int) -> Registry:
    """A registered model with some versions, which nobody loads here."""
    registry = Registry(name)
    registry.client.create_registered_model(name)
    for _ in range(versions):
        registry.client.create_model_version(name, "s3://nowhere/detector")
    return registry


def test_two_promote_at_once(tmp_path: Path) -> None:
    registry = made("together", 4)
    code = (
        "import sys; from components.register.registry import Registry\n"
        "registry = Registry('together')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for number in sys.argv[1] * 5: registry.promote(number, reason='of ' + sys.argv[1])"
    )
    people = [
        subprocess.Popen(
            [sys.executable, "-c", code, numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for numbers in ("12", "34")
    ]
    for person in people:
        assert person.stdout.readline() == "ready\n", person.stderr.read()
    for person in people:
        person.stdin.write("go\n")
        person.stdin.flush()
    for person in people:
        _, errors = person.communicate(timeout=200)
        assert person.returncode == 0, errors

    events = registry.history()
    for numbers in ("12", "34"):
        promoted = [e.version for e in events if e.how == "promoted" and e.reason == f"of {numbers}"]
        assert promoted == list(numbers * 5), "each promotion is kept, in order"
    champion = registry.alias("champion").number
    assert line(events)[-1] == champion
    assert registry.rollback() != champion
    # Two rollbacks at once end at an earlier champion, where the history says.
    earlier = line(registry.history())[:-1]
    both = [threading.Thread(target=Registry("together").rollback) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    champion = registry.alias("champion").number
    assert line(registry.history())[-1] == champion and champion in earlier


def blocks(kind: str) -> list[str]:
    """The documentation's code of a kind."""
    return [part.split("\n```")[0] for part in DOCS.read_text().split(f"```{kind}\n")[1:]]


def test_the_documented_webhook_tells_of_a_move(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, subscribe = blocks("python")
    (tmp_path / "receiver.py").write_text(receiver)
    port, log = free_port(), tmp_path / "receiver.log"
    monkeypatch.setenv("WEBHOOK_SECRET", "a secret of ours")
    there = Project(tmp_path)
    process = there.start(sys.executable, "-u", "receiver.py", str(port), log="receiver.log")
    try:
        registry = made("watched", 2)
        subscribe = subscribe.replace("https://example.org/champion", f"http://127.0.0.1:{port}")
        exec(subscribe.replace("http://127.0.0.1:5000", mlflow_server))
        (hook,) = registry.client.list_webhooks()
        assert registry.client.test_webhook(hook.webhook_id).response_status == 204
        assert told(log, 1)["name"] == "example_model", "MLflow's own test"
        time.sleep(3)  # until every process of the server has forgotten that there was none (its cache holds for 1 s)
        registry.promote("1")
        assert told(log, 2) == {"name": "watched", "alias": "champion", "version": "1"}
        registry.client.set_registered_model_alias("watched", "champion", "2")  # as the MLflow UI does
        assert told(log, 3) == {"name": "watched", "alias": "champion", "version": "2"}
        registry.client.delete_registered_model_alias("watched", "champion")
        assert told(log, 4) == {"name": "watched", "alias": "champion"}
        # With another secret, MLflow's word is no longer taken.
        registry.client.update_webhook(hook.webhook_id, secret="another secret")
        assert registry.client.test_webhook(hook.webhook_id).response_status == 401
        assert len(log.read_text().splitlines()) == 4
    finally:
        stop(process)
        for hook in registry.client.list_webhooks():
            registry.client.delete_webhook(hook.webhook_id)


def told(log: Path, n: int) -> dict:
    """What the receiver printed on its nth line."""
    for _ in range(300):
        lines = log.read_text().splitlines()
        if len(lines) >= n:
            return json.loads(lines[n - 1])
        time.sleep(0.2)
    raise AssertionError(f"{len(lines)} of {n} deliveries came:\n{log.read_text()}")


def packed(name: str, model: Path) -> None:
    """A new version whose files are on the server."""
    import mlflow

    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(model), "model")
    client = Registry(name).client
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)


def test_promotion_in_the_mlflow_ui(mlflow_server: str, browser: Any, tmp_path: Path) -> None:
    """By hand in a browser: the server that follows answers with the new version, and with the old one after a
    rollback, while callers ask all the time and none is turned away; the history knows of both."""
    from playwright.sync_api import expect

    registry = made("clicked", 0)
    for version in ("1", "2"):
        packed("clicked", served.packed(served.detector(tmp_path / version, seed=int(version))))
    registry.promote("1")
    registry.challenge("2")
    home = served.project(tmp_path / "project", poll_s=0.5, answer_s=served.PATIENCE)
    params = yaml.safe_load((home.root / "params.yaml").read_text())
    (home.root / "params.yaml").write_text(yaml.safe_dump({**params, "register": {"model": "clicked"}}))
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(120_000)
    expect.set_options(timeout=120_000)
    page.goto(f"{mlflow_server}/#/models/clicked")
    rows = [page.get_by_role("row").filter(has_text=f"Version {number}") for number in (1, 2)]
    with (
        served.serve(home, "--follow", "--workers", "2", MLFLOW_TRACKING_URI=mlflow_server) as server,
        served.Load(server) as load,
    ):
        server.wait(lambda: load.versions[-1:] == ["1"])
        rows[1].locator("button[data-component-id*=aliases]").click()
        dialog = page.get_by_role("dialog")
        dialog.locator("input").fill("champion")
        page.keyboard.press("Enter")
        page.screenshot(path=tmp_path / "promotion.png")
        dialog.get_by_role("button", name="Save aliases").click()
        expect(dialog).to_be_hidden()
        page.reload()  # the page shows its own change at the next look only
        expect(rows[1].get_by_title("champion")).to_be_visible()
        expect(rows[0].get_by_title("champion")).to_have_count(0)
        server.wait(lambda: load.versions[-1:] == ["2"])

        assert registry.alias("champion").number == "2"
        assert [(e.version, e.how) for e in registry.history()] == [("1", "promoted"), ("2", "found")]
        assert registry.rollback() == "1"
        page.reload()
        expect(rows[0].get_by_title("champion")).to_be_visible()
        expect(rows[1].get_by_title("champion")).to_have_count(0)
        server.wait(lambda: load.versions[-1:] == ["1"])
    page.close()
    assert load.failures == [] and set(load.versions) == {"1", "2"}
