"""The queue of reports: who may change what, and what becomes of two who decide at once."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from components import reports
from components.stage import StageError

ROOT = Path(__file__).parents[1]
SAID: dict[str, Any] = {"label": "real", "answer": "ai", "verdict": "uncertain", "probability": 0.61, "note": "my dog"}


def report(folder: Path, data: bytes, trusted: bool = False, **said: Any) -> str:
    return reports.store(folder, data, "jpg", SAID | said, trusted=trusted).stem


def said_of(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text()))


def test_decisions_and_the_way_back(tmp_path: Path) -> None:
    first, second, third = (report(tmp_path, data) for data in (b"a", b"b", b"c"))
    assert {one.name for one in reports.waiting(tmp_path)} == {first, second, third}
    assert (tmp_path / f"{first}.jpg").read_bytes() == b"a" and first == hashlib.sha256(b"a").hexdigest()
    assert reports.decide(tmp_path, first, "accept", "anna").status == "accepted"
    assert reports.decide(tmp_path, second[:8], "reject", "anna", "too blurred").status == "rejected"
    assert said_of(tmp_path, second)["remark"] == "too blurred"
    other = reports.decide(tmp_path, third, "relabel", "ben")
    assert (other.label, other.claimed, other.status, other.is_mistake) == ("ai", "real", "accepted", False)
    assert said_of(tmp_path, third)["reviewer"] == "ben" and reports.waiting(tmp_path) == []
    with pytest.raises(StageError, match=f"{third[:8]}: it was accepted by ben at .* meanwhile"):
        reports.decide(tmp_path, third[:8], "reject", "anna")
    back = reports.decide(tmp_path, third, "reopen", "anna")
    assert (back.label, back.claimed, back.status) == ("real", "real", "pending")
    assert said_of(tmp_path, third).keys() == {*SAID, "status", "reported"}
    with pytest.raises(StageError, match="it waits already"):
        reports.decide(tmp_path, third, "reopen", "anna")
    with pytest.raises(StageError, match="no report called 'ffffff'"):
        reports.decide(tmp_path, "ffffff", "accept", "anna")


def test_strangers_change_nothing_that_was_decided(tmp_path: Path) -> None:
    name = report(tmp_path, b"a")
    report(tmp_path, b"a", label="ai")
    assert said_of(tmp_path, name)["label"] == "ai", "while it waits, the later word counts"
    reports.decide(tmp_path, name, "reject", "anna")
    report(tmp_path, b"a", label="real")
    assert (said_of(tmp_path, name)["label"], said_of(tmp_path, name)["status"]) == ("ai", "rejected")
    report(tmp_path, b"a", trusted=True, label="real")
    assert (said_of(tmp_path, name)["label"], said_of(tmp_path, name)["status"]) == ("real", "accepted")


def test_a_queue_that_is_full_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST", 2)
    report(tmp_path, b"a")
    second = report(tmp_path, b"b")
    with pytest.raises(reports.Full):
        report(tmp_path, b"c")
    report(tmp_path, b"b", label="ai")  # is there already
    reports.decide(tmp_path, second, "reject", "anna")
    report(tmp_path, b"c")


def test_a_stray_file_stops_nobody_s_report(tmp_path: Path) -> None:
    (tmp_path / "stray.jpg").write_bytes(b"nothing beside it")
    (tmp_path / "odd.jpg").write_bytes(b"and nonsense beside it")
    (tmp_path / "odd.json").write_text("{}")
    name = report(tmp_path, b"a")
    assert said_of(tmp_path, name)["status"] == "pending"
    with pytest.raises(StageError, match=r"odd\.json"):  # who decides is told
        reports.waiting(tmp_path)


def test_of_two_who_decide_at_once_one_is_told(tmp_path: Path) -> None:
    names = [report(tmp_path, bytes([n])) for n in range(20)]
    told: list[str] = []

    def person(decision: reports.Decision, name_of: str) -> None:
        for name in names:
            try:
                reports.decide(tmp_path, name, decision, name_of)
            except StageError as error:
                told.append(str(error))

    both = [threading.Thread(target=person, args=args) for args in (("accept", "anna"), ("reject", "ben"))]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(told) == len(names)
    decided = [reports.read(tmp_path / f"{name}.jpg") for name in names]
    for one in decided:
        assert (one.status, one.said("reviewer")) in {("accepted", "anna"), ("rejected", "ben")}


def test_a_share_of_the_mistakes_is_proof_and_stays_so() -> None:
    mistake = reports.Report.model_validate(SAID)
    pictures = [bytes([n, m]) for n in range(40) for m in range(10)]
    splits = [reports.split(mistake, data, 0.5) for data in pictures]
    assert 0.4 < splits.count("regression") / len(splits) < 0.6 and set(splits) == {"regression", "reported"}
    larger = [reports.split(mistake, data, 0.8) for data in pictures]
    assert all(b == "regression" for a, b in zip(splits, larger, strict=True) if a == "regression")
    for answer, verdict in (("real", "uncertain"), (None, "real"), (None, None)):
        right = mistake.model_copy(update={"answer": answer, "verdict": verdict})
        assert {reports.split(right, data, 1.0) for data in pictures} == {"reported"}


def test_the_command_lists_and_decides(tmp_path: Path) -> None:
    names = [
        report(tmp_path / "feedback", data, note=note) for data, note in ((b"a", "plain"), (b"b", "[red]\x1b[31m"))
    ]
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")

    def review(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "flows.cli", "review", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    listed = review()
    assert listed.returncode == 0, listed.stderr
    assert all(name[:12] in listed.stdout for name in names) and "2 reports wait" in listed.stdout
    assert "[red]" in listed.stdout and "\x1b" not in listed.stdout
    done = review("accept", names[0][:10], "--remark", "I was there")
    assert done.stdout == f"{names[0][:10]}: accepted as real\n"
    assert said_of(tmp_path / "feedback", names[0])["remark"] == "I was there"
    again = review("reject", names[0])
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and "it was accepted by" in again.stderr
