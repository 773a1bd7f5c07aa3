"""What callers get: each row by itself, in order, whatever the file."""

import base64
import io
import itertools
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import detectors
import fuzz
import numpy as np
import pytest
import signing
from PIL import Image

from components import images, integrity
from components.detector.familiarity import Familiarity
from components.detector.file import Network
from components.serve import provenance
from components.serve.cascade import Cascade
from components.serve.check import find
from components.serve.detector import FIELDS, Detector
from components.serve.files import DETECTOR
from components.serve.reference import FOLDER, keep, references
from components.stage import StageError


def made(folder: Path, view: str = "16", familiar: Familiarity | None = None, **fitted: object) -> Detector:
    """A detector with an untrained network, always the same one."""
    network = detectors.member(detectors.cnn(), view)
    return detectors.write(folder, network, familiar=familiar, **fitted).load("3")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return made(tmp_path_factory.mktemp("detector"))


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures_above_16_megapixels_are_decoded_one_at_a_time(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding: list[int] = []
    most = 0

    def decode(image: Image.Image) -> Image.Image:
        nonlocal most
        decoding.append(1)
        most = max(most, len(decoding))
        time.sleep(0.1)
        decoding.pop()
        return Image.new("RGB", (40, 30))

    monkeypatch.setattr(images, "to_rgb", decode)
    with ThreadPoolExecutor(4) as threads:
        monkeypatch.setitem(detector.__dict__, "_threads", threads)
        for height, at_once in ((4001, {1}), (4000, {2, 3, 4})):
            buffer = io.BytesIO()
            Image.new("L", (4000, height)).save(buffer, "PNG")
            most = 0
            rows = detector.score([buffer.getvalue()] * 8)
            assert [row["error"] for row in rows] == [None] * 8 and most in at_once


def test_bad_rows_fail_alone_and_the_order_stays(detector: Detector) -> None:
    good = [picture(n) for n in range(600)]  # more than one block, decoded in threads
    mixed: list[object] = list(good)
    for place in (0, 255, 256, 599):
        mixed[place] = b"broken"
    answers = detector.score(mixed)
    assert len(answers) == 600
    assert [i for i, a in enumerate(answers) if a["error"]] == [0, 255, 256, 599]
    alone = detector.score([good[300]])[0]
    assert answers[300]["probability"] == pytest.approx(alone["probability"], abs=1e-5)
    assert all(tuple(a) == FIELDS and a["model_version"] == "3" for a in answers)


def test_it_sees_what_the_network_was_trained_on(detector: Detector, tmp_path: Path) -> None:
    """Equalised and cut into crops like the arrays; of several crops the mean logit counts."""
    equal = {"size": "resize", "side": 32, "quality": 70}
    detector = made(tmp_path, view="crop-16x3", equalise=equal)
    data = picture(5, size=(90, 70))
    crops = images.render(images.equalise(images.decode(data), equal), "crop-16x3")
    network = detectors.cnn()
    logits = network.predict(crops.astype(np.float32), verbose=0)
    (answer,) = detector.score([data], explain=False)
    assert answer["probability"] == pytest.approx(1 / (1 + np.exp(-logits.mean())), abs=1e-5)
    assert np.ptp(logits) > 0


@pytest.mark.parametrize("error", [RuntimeError("its own"), SystemExit(3), MemoryError()])
@pytest.mark.parametrize("broken", ["images.open_image", "images.to_rgb", "images.jpeg_quality", "provenance.read"])
def test_a_decoder_that_breaks_costs_its_own_row(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    module, name = broken.split(".")
    works = getattr(globals()[module], name)
    calls = itertools.count()

    def breaks(*given: object) -> object:
        if next(calls) == 1:
            raise error
        return works(*given)

    monkeypatch.setattr(globals()[module], name, breaks)
    rows = detector.score([picture(n) for n in range(3)])
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["error"].startswith(f"can't be read here: {type(error).__name__}") and rows[1]["label"] is None


def test_threads_that_ask_at_once_get_what_they_would_get_alone(tmp_path: Path) -> None:
    """Eight of them, each with other pictures, one that can't be read among them."""
    members = [detectors.member(detectors.cnn(), "crop-16x2", "a"), detectors.member(detectors.cnn(24), "24", "b")]
    detector = detectors.write(tmp_path, *members).load("3")
    asked = [[picture(8 * n + k, size=(60 + n, 50 + k)) for k in range(3)] + [b"broken"] for n in range(8)]

    def ask(files: list[bytes]) -> list[list[dict[str, object]]]:
        return [detector.score(files, explain=explain) for explain in (True, False)]

    alone = [ask(files) for files in asked]
    with ThreadPoolExecutor(8) as threads:
        at_once = list(threads.map(ask, asked))
    for one, other in zip(alone, at_once, strict=True):
        for rows, again in zip(one, other, strict=True):
            for row, same in zip(rows, again, strict=True):
                assert same.pop("probability") == pytest.approx(row.pop("probability"), abs=1e-6)
                assert same == row


def test_base64_and_bytes_are_the_same(detector: Detector) -> None:
    data = picture(1, "JPEG")
    first, second = detector.score([data, base64.b64encode(data).decode()])
    assert first == second


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("%%%", "not valid base64"),
        (12, "no base64"),
        (None, "no base64"),
        (float("nan"), "no base64"),
        ("", "empty file"),
    ],
)
def test_what_is_no_image_says_why(detector: Detector, value: object, reason: str) -> None:
    assert reason in detector.score([value])[0]["error"]


def test_verdicts_follow_the_band(detector: Detector) -> None:
    for answer in detector.score([picture(n) for n in range(50)]):
        p = answer["probability"]
        assert answer["verdict"] == ("ai" if p >= 0.6 else "real" if p < 0.4 else "uncertain")
        assert answer["label"] == ("ai" if p >= 0.5 else "real")


def test_serving_sees_what_training_saw(detector: Detector) -> None:
    data = picture(5, "JPEG", (64, 48), quality=60)
    pixels = images.render(images.decode(data), "16").astype(np.float32)
    [[logit]] = detectors.cnn().predict(pixels[None], verbose=0)
    assert detector.score([data])[0]["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_what_the_file_says_of_itself_is_beside_the_score_and_never_in_it(detector: Detector, kind: str) -> None:
    fuzz.valid()  # registers HEIF for writing
    exif = Image.Exif()
    exif[271], exif[272] = "Canon", "EOS R5"
    plain = picture(1, kind)
    said = picture(1, kind, exif=exif, **({"tiffinfo": {700: fuzz.XMP}} if kind == "TIFF" else {"xmp": fuzz.XMP}))
    media = {"HEIF": "image/heic"}.get(kind, f"image/{kind.lower()}")
    signed = signing.Authority().sign(plain, media)
    if kind == "PNG":  # whose checksum says more than the signature
        remark = b"tEXta\0b"
        changed = signed[:33] + struct.pack(">L", 3) + remark + struct.pack(">L", zlib.crc32(remark)) + signed[33:]
    else:
        changed = signed.replace(b"Model X", b"Model Y")
    answers = detector.score([plain, said, signed, changed])
    assert answers[0]["provenance"] == {"note": provenance.NOTHING}
    assert answers[1]["provenance"]["note"] == provenance.NOTE
    if kind != "TIFF":  # where Pillow writes one or the other
        assert answers[1]["provenance"]["camera"] == {"make": "Canon", "model": "EOS R5"}
    if kind != "PNG":  # where Pillow writes none
        assert answers[1]["provenance"]["digital_source_type"]["term"] == "trainedAlgorithmicMedia"
    assert [answer["provenance"].get("c2pa", {}).get("state") for answer in answers] == [None, None, "valid", "invalid"]
    for answer in answers[1:]:
        assert {**answer, "provenance": {}} == {**answers[0], "provenance": {}}


def test_a_wrong_trust_list_is_found_before_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUEFRAME_C2PA_TRUST_LIST", str(tmp_path / "list.pem"))
    with pytest.raises(StageError, match="TRUEFRAME_C2PA_TRUST_LIST"):
        made(tmp_path)


def test_find_takes_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.png", "b/1.JPG", "b/notes.txt", "a.dat"):
        (tmp_path / name).write_bytes(b"x")
    left_out: Counter[str] = Counter()
    assert find([tmp_path / "a.dat", tmp_path / "b"], left_out) == [
        tmp_path / n for n in ("a.dat", "b/1.JPG", "b/2.png")
    ]
    with pytest.raises(StageError, match="not found"):
        find([tmp_path / "c"], left_out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="no images"):
        find([tmp_path / "empty"], left_out)


@pytest.mark.parametrize(
    ("scope", "size", "said"),
    [
        (
            {"min_side": 64, "max_side": None},
            (200, 50),
            "200 × 50 px: this detector was judged on pictures of 64 or more px",
        ),
        (
            {"min_side": 16, "max_side": 64},
            (200, 100),
            "200 × 100 px: this detector was judged on pictures of 16 to 64 px",
        ),
        ({"min_side": 16, "max_side": 64}, (200, 50), None),
    ],
)
def test_a_size_out_of_scope_is_uncertain(
    tmp_path: Path, scope: dict[str, object], size: tuple[int, int], said: str | None
) -> None:
    answer = made(tmp_path, scope=scope, low=0.5, high=0.5).score([picture(1, size=size)])[0]
    assert answer["warnings"] == ([said] if said else [])
    assert (answer["verdict"] == "uncertain") == bool(said)
    assert answer["label"] in ("ai", "real") and answer["probability"] is not None


def test_a_jpeg_too_coarse_is_uncertain(tmp_path: Path) -> None:
    fine, coarse = made(tmp_path, low=0.5, high=0.5).score([picture(1, "JPEG", quality=q) for q in (40, 10)])
    assert (fine["warnings"], fine["verdict"] == "uncertain") == ([], False)
    assert coarse["verdict"] == "uncertain" and "JPEG quality" in coarse["warnings"][0]


def test_what_is_unlike_anything_seen_is_uncertain(tmp_path: Path) -> None:
    seen = np.stack([images.render(images.decode(picture(n)), "16") for n in range(200)])
    features = Network(detectors.compiled(detectors.cnn(), "16")).outputs({"pixels": seen})["features"]
    detector = made(tmp_path, familiar=Familiarity.fit(features, np.arange(200) % 2 == 0))
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(buffer, "PNG")
    more, red = detector.score([picture(1000), buffer.getvalue()])
    assert more["warnings"] == []
    assert red["verdict"] == "uncertain" and "unlike" in red["warnings"][0]


def test_the_reference_asks_the_detector_for_the_size(tmp_path: Path) -> None:
    for name, low, high in (("small", 16, 64), ("large", 100, None)):
        made(tmp_path / name, scope={"min_side": low, "max_side": high}, threshold=0.1 if name == "small" else 0.9)
        integrity.write(tmp_path / name)
    files = [picture(1, size=(40, 30)), picture(2, size=(200, 150)), b"broken", picture(3, size=(300, 80))]
    answers = Cascade(references(tmp_path)).score(files)
    assert [a["threshold"] for a in answers] == [0.1, 0.9, 0.1, 0.1]
    assert [bool(a["error"]) for a in answers] == [False, False, True, False]
    assert answers[3]["verdict"] == "uncertain" and "16 to 64 px" in answers[3]["warnings"][0]
    assert [a["model_version"] for a in answers] == [f"reference-{n}" for n in ("small", "large", "small", "small")]


def test_the_reference_detectors_are_those_that_were_kept() -> None:
    for path in FOLDER.glob(f"*/{DETECTOR}"):
        integrity.check(path.parent)


def test_without_a_reference_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="trueframe run"):
        references(tmp_path)


def test_what_is_kept_as_a_reference_says_the_same_in_half_the_size(tmp_path: Path) -> None:
    detector = made(tmp_path / "from")
    keep(tmp_path / "from", tmp_path / "models/small")
    pictures = [picture(n) for n in range(8)]
    kept = [row["probability"] for row in Cascade(references(tmp_path / "models")).score(pictures)]
    assert kept == pytest.approx([row["probability"] for row in detector.score(pictures)], abs=2e-3)
    whole, rounded = (Path(tmp_path, folder, DETECTOR).read_bytes() for folder in ("from", "models/small"))
    assert len(zlib.compress(rounded)) < 0.7 * len(whole)
    (tmp_path / "models/small" / DETECTOR).write_bytes(whole)
    with pytest.raises(StageError, match=r"models/small: not the files of its SHA256SUMS: detector\.onnx was changed"):
        references(tmp_path / "models")
    with pytest.raises(StageError, match="not here"):
        keep(tmp_path / "none", tmp_path / "models/other")
