"""Which files of a folder are of the collection: links, what systems put there, what is no file, odd names."""

import os
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from components import folders, images
from components.folders import spelled, walk


def found(root: Path) -> list[str]:
    return [name for name, out in walk(root) if out is None]


def reasons(root: Path) -> dict[str, str]:
    return {name: out.reason for name, out in walk(root) if out}


@pytest.fixture
def tree(tmp_path: Path, write_files: Callable[..., Path]) -> Callable[..., Path]:
    return lambda *names, at="root": write_files(tmp_path / at, dict.fromkeys(names, b"x"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".hidden", "hidden"),
        ("ai/.trashed-1700000000-IMG_1.jpg", "hidden"),
        ("ai/.pending-1700000000-IMG_1.jpg", "hidden"),
        ("ai/._a.jpg", "hidden"),
        (".Trashes/501/ai/a.jpg", "hidden"),
        (".thumbnails/a.jpg", "hidden"),
        (".git/objects/ab/cd", "hidden"),
        ("ai/.DS_Store", "hidden"),
        ("@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "of the system"),
        ("ai/@eadir/a.jpg", "of the system"),
        ("__MACOSX/ai/._a.jpg", "of the system"),
        ("#recycle/a.jpg", "of the system"),
        ("$RECYCLE.BIN/S-1/$R1.jpg", "of the system"),
        ("System Volume Information/a.jpg", "of the system"),
        ("lost+found/#12", "of the system"),
        ("ai/Thumbs.db", "of the system"),
        ("ai/desktop.ini", "of the system"),
        ("ai/a.jpg~", "backup or half a download"),
        ("ai/#a.jpg#", "backup or half a download"),
        ("ai/a.jpg_original", "backup or half a download"),
        ("ai/a.jpg.crdownload", "backup or half a download"),
        ("ai/a.jpg", None),
        ("a..jpg", None),
        ("ai/#1.jpg", None),
        ("eaDir/recycle/lost/a~1.jpg", None),
    ],
)
def test_what_is_not_of_the_collection(tree: Callable[..., Path], name: str, why: str | None) -> None:
    assert folders.why_not(name) == why
    assert walk(tree(name))[0][0] == name
    assert reasons(tree(name)).get(name) == why


def test_where_the_folder_itself_lies_does_not_matter(tree: Callable[..., Path]) -> None:
    assert found(tree("ai/a.jpg", at=".cache/@eaDir/__MACOSX")) == ["ai/a.jpg"]


def test_the_order_is_that_of_the_folders(tree: Callable[..., Path]) -> None:
    names = ["a/b.jpg", "a/b/c.jpg", "a.jpg", "a0.jpg", "b/a.jpg"]
    assert found(tree(*names)) == sorted(names, key=lambda name: name.split("/"))


def test_links_are_followed_once(tmp_path: Path, tree: Callable[..., Path]) -> None:
    disk = tree("coco/1.jpg", "coco/deep/2.jpg", "one.jpg", at="disk")
    root = tree("ai/a.jpg")
    (root / "real").symlink_to(disk / "coco")
    (root / "zeal").symlink_to(disk / "coco")
    (root / "zzz").symlink_to(disk / "coco/deep")
    (root / "ai/one.jpg").symlink_to(disk / "one.jpg")
    (root / "ai/two.jpg").symlink_to("../ai/one.jpg")
    assert found(root) == ["ai/a.jpg", "ai/one.jpg", "real/1.jpg", "real/deep/2.jpg"]
    assert reasons(root) == dict.fromkeys(["ai/two.jpg", "zeal", "zzz"], "link seen before")
    assert {out.name: out.same_as for _, out in walk(root) if out} == {
        "ai/two.jpg": "ai/one.jpg",
        "zeal": "real/",
        "zzz": "real/deep/",
    }


def test_what_has_a_name_of_its_own_keeps_it(tree: Callable[..., Path]) -> None:
    root = tree("zoo/a.jpg")
    (root / "all").symlink_to("zoo")
    (root / "b.jpg").symlink_to(root / "zoo/a.jpg")
    assert found(root) == ["zoo/a.jpg"]
    assert reasons(root) == {"all": "link seen before", "b.jpg": "link seen before"}


def test_a_link_to_what_is_hidden_beside_it_is_followed(tree: Callable[..., Path]) -> None:
    root = tree(".cache/blobs/0f", ".cache/real/1.jpg")
    (root / "ai.jpg").symlink_to(".cache/blobs/0f")
    (root / "real").symlink_to(".cache/real")
    assert found(root) == ["ai.jpg", "real/1.jpg"]
    assert Counter(reasons(root).values()) == {"hidden": 2}


def test_links_that_lead_round_or_nowhere(tmp_path: Path, tree: Callable[..., Path]) -> None:
    disk = tree("x/1.jpg", at="disk")
    (disk / "x/up").symlink_to("..")
    root = tree("ai/a.jpg")
    for name, target in {
        "ai/round": "..",
        "above": "../..",
        "self": "self",
        "nowhere": "none.jpg",
        "other": str(disk / "x"),
        ".hidden": "ai",
    }.items():
        (root / name).symlink_to(target)
    assert found(root) == ["ai/a.jpg", "other/1.jpg"]
    assert reasons(root) == {
        ".hidden": "hidden",
        "above": "link to a folder above",
        "ai/round": "link seen before",
        "nowhere": "broken link",
        "other/up": "link to a folder above",
        "self": "broken link",
    }
    (tmp_path / "way").symlink_to(root)
    assert found(tmp_path / "way") == ["ai/a.jpg", "other/1.jpg"]


def test_what_is_no_file_is_never_opened(tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree("a.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "link.jpg").symlink_to("pipe.jpg")
    (root / "null").symlink_to("/dev/null")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        assert [name for name, out in folders.pictures(root) if out is None] == ["a.jpg"]
        assert reasons(root) == dict.fromkeys(["link.jpg", "null", "pipe.jpg", "socket.png"], "no file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_counted(tree: Callable[..., Path]) -> None:
    root = tree("a.jpg", "b/c.jpg", "d.jpg")
    (root / "a.jpg").chmod(0)
    (root / "b").chmod(0)
    try:
        assert (found(root), reasons(root)) == (["d.jpg"], {"a.jpg": "not readable", "b": "not readable"})
    finally:
        (root / "b").chmod(0o700)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "HEIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x1cftypisom\0\0\0\0isomavc1", None),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", None),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera raw"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL"),
        (b"\xff\x0a\xfa\x0f", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"BM are two letters that a text may begin with", None),
        (b"RIFF\x24\0\0\0WAVEfmt ", None),
        (b"%PDF-1.7", None),
        (b"PK\x03\x04", None),
        (b"", None),
    ],
)
def test_an_image_is_known_by_how_it_begins(start: bytes, kind: str | None) -> None:
    assert images.kind(start.ljust(images.HEAD, b"\0") if start else b"") == kind


def test_what_is_written_here_is_known_by_how_it_begins(
    picture: Callable[..., images.Image.Image], encode: Callable[..., bytes]
) -> None:
    for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF"):
        data = encode(picture(1), name)
        assert images.kind(data) == images.kind(data[: images.HEAD]) == name
        images.open_image(data)
    assert images.kind(encode(picture(1), "MPO", save_all=True, append_images=[picture(2)])) == "JPEG"
    for tags in ({50706: bytes((1, 4, 0, 0))}, {254: 1}):
        raw = images.Image.new("RGB", (20, 16))
        written = encode(raw, "TIFF", tiffinfo=tags)
        assert images.kind(written) == "camera raw"
        with pytest.raises(images.ImageError, match="camera raw, a format that isn't read here"):
            images.open_image(written)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"caf\xe9.jpg", "caf\\xe9.jpg"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("日本 é.jpg".encode(), "日本 é.jpg"),
        (b"a\xc3.jpg", "a\\xc3.jpg"),
    ],
)
def test_a_name_that_is_not_utf_8_is_spelled_out(raw: bytes, shown: str) -> None:
    assert spelled(os.fsdecode(raw)) == shown
    shown.encode()


def test_half_a_pair_of_surrogates_is_spelled_out_too() -> None:
    assert spelled("a\ud83d") == "a\\ud83d"
