"""Who answers: the first detector that was judged on such pictures."""

import base64
import io
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import pytest
from PIL import Image

from components import images, integrity
from components.detector.familiarity import Familiarity
from components.detector.file import Network
from components.serve import worker
from components.serve.cascade import Cascade
from components.serve.detector import UNFAMILIAR
from components.serve.files import Files
from components.serve.reference import Reference, beside, references

ALL, NONE = detectors.known(16), detectors.known(16, 1e-9)
OWN, SMALL, PHOTO = (32, 128), (16, 64), (80, None)


def made(
    folder: Path, seed: int, scope: tuple[int, int | None], familiar: Familiarity = ALL, encoder: Any = None
) -> Files:
    """An untrained detector, each with another threshold."""
    sides = dict(zip(("min_side", "max_side"), scope, strict=True))
    cut: dict[str, Any] = dict.fromkeys(("threshold", "low", "high"), 0.1 * seed)
    cut |= {"encoder": encoder} if encoder else {}
    files = detectors.write(folder, detectors.member(detectors.cnn(seed=seed)), familiar=familiar, scope=sides, **cut)
    integrity.write(folder)
    return files


def cascade(
    folder: Path, own: tuple[int, int | None] = OWN, **familiar: Familiarity
) -> tuple[Cascade, list[Reference]]:
    """A champion before two reference detectors, of which each picture is familiar to all unless said otherwise."""
    champion = made(folder / "own", 1, own, familiar.get("familiar_to_own", ALL)).load("7")
    made(folder / "models/small", 2, SMALL, familiar.get("small", ALL))
    made(folder / "models/photo", 3, PHOTO, familiar.get("photo", ALL))
    known = references(folder / "models")
    return Cascade([champion, *known]), known


def picture(side: int, seed: int = 1, kind: str = "PNG", **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 9, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def by(rows: list[dict[str, Any]]) -> list[str]:
    return [row["model_version"] for row in rows]


def is_loaded(reference: Reference) -> bool:
    return "detector" in vars(reference)


def test_each_picture_is_answered_by_the_first_that_was_judged_on_its_size(tmp_path: Path) -> None:
    together, known = cascade(tmp_path)
    sides = [300, 64, 20, 129, 32, 128, 500]
    files = [picture(side, seed) for seed, side in enumerate(sides)]
    rows = together.score(files)
    photo, small = "reference-photo", "reference-small"
    assert by(rows) == [photo, "7", small, photo, "7", "7", photo]
    assert all(row["warnings"] == [] and row["error"] is None for row in rows)
    thresholds = {"7": 0.1, small: 0.2, photo: 0.3}
    assert [row["threshold"] for row in rows] == pytest.approx([thresholds[version] for version in by(rows)])
    alone = {one.version: one for one in together.detectors}
    for file, row in zip(files, rows, strict=True):
        assert alone[row["model_version"]].score([file])[0]["probability"] == pytest.approx(row["probability"])
    assert together.score([base64.b64encode(files[0]).decode()])[0]["model_version"] == photo
    assert by(Cascade(known).score(files)) == [photo, small, small, photo, small, photo, photo]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (picture(64), None),
        (picture(64, kind="JPEG", quality=5), "JPEG quality"),
        (picture(10), "too small"),
        (b"broken", None),
    ],
)
def test_what_needs_no_other_detector_loads_none(tmp_path: Path, file: bytes, said: str | None) -> None:
    together, known = cascade(tmp_path)
    [row] = together.score([file])
    assert row["model_version"] == "7" and not any(map(is_loaded, known))
    assert bool(row["error"]) is (file == b"broken")
    assert (said in row["warnings"][0] and row["verdict"] == "uncertain") if said else row["warnings"] == []


def test_only_the_reference_detector_that_is_asked_is_loaded(tmp_path: Path) -> None:
    together, known = cascade(tmp_path)
    together.score([picture(300)])
    assert {one.version: is_loaded(one) for one in known} == {"reference-small": False, "reference-photo": True}


def test_a_size_that_is_nobodys_is_the_champions_to_answer(tmp_path: Path) -> None:
    together, known = cascade(tmp_path, own=(200, 400))
    [row] = together.score([picture(70)])
    assert row["model_version"] == "7" and row["verdict"] == "uncertain"
    assert row["warnings"] == ["79 × 70 px: this detector was judged on pictures of 200 to 400 px"]
    assert not any(map(is_loaded, known))


def test_what_is_unlike_all_that_one_knows_is_answered_by_another_that_knows_it(tmp_path: Path) -> None:
    """Of the same size; where nobody knows it, the first one's `uncertain` stands."""
    network = Network(made(tmp_path / "own", 1, OWN).detector)
    seen = np.stack([images.render(images.decode(picture(64, n)), "16") for n in range(200)])
    features = network.outputs({"pixels": seen})["features"]
    noise = Familiarity.fit(features, np.arange(200) % 2 == 0)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(buffer, "PNG")
    files = [picture(64, 1000), buffer.getvalue(), picture(64, 1001)]

    together, known = cascade(tmp_path / "a", familiar_to_own=noise)
    rows = together.score(files)
    assert by(rows) == ["7", "reference-small", "7"] and rows[1]["warnings"] == [] and rows[1]["verdict"] != "uncertain"
    assert not is_loaded(known[1]), "80 px and more"

    together, _ = cascade(tmp_path / "b", familiar_to_own=noise, small=NONE)
    rows = together.score(files)
    assert by(rows) == ["7"] * 3 and rows[1]["warnings"] == [UNFAMILIAR] and rows[1]["verdict"] == "uncertain"


def test_what_its_reference_detector_does_not_know_stays_its_own(tmp_path: Path) -> None:
    """Not the champion's, which was never judged on such a size."""
    together, _ = cascade(tmp_path, photo=NONE)
    [row] = together.score([picture(300)])
    assert (row["model_version"], row["warnings"], row["verdict"]) == ("reference-photo", [UNFAMILIAR], "uncertain")


def test_evidence_and_a_threshold_are_of_who_answers(tmp_path: Path) -> None:
    together, known = cascade(tmp_path)
    files = [picture(64), picture(300)]
    for file, row, one in zip(
        files, together.score(files, explain=True), (together.detectors[0], known[1]), strict=True
    ):
        assert row["heatmap"] == one.score([file], explain=True)[0]["heatmap"]
    assert [(row["threshold"], row["label"]) for row in together.score(files, threshold=0.0)] == [(0.0, "ai")] * 2
    assert all("from 0 to 1" in row["error"] for row in together.score(files, threshold=2.0))


def test_a_champion_answers_where_no_reference_detector_is(tmp_path: Path) -> None:
    assert beside(tmp_path) == []
    together = Cascade([made(tmp_path / "own", 1, OWN).load("7")])
    assert [bool(row["warnings"]) for row in together.score([picture(64), picture(300)])] == [False, True]


def test_of_two_for_the_same_pictures_the_better_one_is_asked_unless_fast_ones_are_wanted(tmp_path: Path) -> None:
    for number, (name, scope) in enumerate({"photo": PHOTO, "small": SMALL, "wild": (100, None)}.items()):
        made(tmp_path / name, number, scope, encoder={"name": "clip", "sha256": ""} if name == "wild" else None)
    assert [one.version for one in references(tmp_path)] == ["reference-small", "reference-wild", "reference-photo"]
    assert [one.version for one in beside(tmp_path, fast=True)] == ["reference-small", "reference-photo"]


def test_a_worker_asks_as_the_settings_say(tmp_path: Path) -> None:
    champion = made(tmp_path, 1, OWN).load("7")

    def asked(references: Any) -> list[str]:
        who = worker._loaded(champion, references=references).__self__  # type: ignore[attr-defined]
        return [one.version for one in getattr(who, "detectors", [who])]

    everyone = [one.version for one in beside()]
    assert asked(True) == ["7", *everyone] and "reference-small" in everyone
    assert asked("fast") == ["7", *(one.version for one in beside(fast=True))]
    assert asked(False) == ["7"]
