"""What the folders on a path say of an image, and what stops an ingestion because they say too much or too little."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.folders import LeftOut
from components.ingest import _entry
from components.ingest.labels import Labels
from components.params import Source
from components.stage import StageError


def told(paths: list[str], root: str = "", name: str = "mine", **source: Any) -> dict[str, str | None]:
    """The labels of some paths, or the error that ends the ingestion."""
    labels = Labels(_entry(name, Source.model_validate(source)), "place", lambda: paths, root)
    said: dict[str, str | None] = {path: labels.of(path) for path in paths}
    for path in paths:
        if said[path] is None:
            labels.is_left_out(path)
    labels.check()
    return said


def refused(paths: list[str], root: str = "", **source: Any) -> str:
    with pytest.raises(StageError) as caught:
        told(paths, root, **source)
    assert "\n" not in str(caught.value) and "`labels`" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("word", ["nature", "human", "photo", "Photo", "real_people", "realistic", "anime"])
def test_a_word_for_a_subject_says_nothing_by_itself(word: str) -> None:
    paths = [f"ai/{word}/a.jpg", "ai/other/b.jpg", "real/c.jpg"]
    assert told(paths) == dict(zip(paths, ["ai", "ai", "real"], strict=True))
    assert told([f"{word}/ai/a.jpg", f"{word}/real/b.jpg"]) == {f"{word}/ai/a.jpg": "ai", f"{word}/real/b.jpg": "real"}
    assert f"unknown label folder: {word} (1 files)" in refused([f"{word}/a.jpg", "misc/ai/b.jpg"])


def test_a_word_for_a_subject_counts_beside_the_other_label() -> None:
    genimage = [
        f"{g}/{split}/{d}/0.png" for g in ("sdv4", "adm") for split in ("train", "val") for d in ("ai", "nature")
    ]
    assert told(genimage) == {path: "ai" if "/ai/" in path else "real" for path in genimage}
    assert told(genimage, root="GenImage") == told(genimage)
    assert told(["photo/0.jpg", "FAKE/1.jpg"]) == {"photo/0.jpg": "real", "FAKE/1.jpg": "ai"}
    # The subjects of a folder of generated images, beside one that says itself what it is.
    assert told(["ai/nature/0.jpg", "ai/human/1.jpg", "real/nature/2.jpg"]) == {
        "ai/nature/0.jpg": "ai",
        "ai/human/1.jpg": "ai",
        "real/nature/2.jpg": "real",
    }
    assert told(["ai/nature/photo/0.jpg", "real/0.jpg"])["ai/nature/photo/0.jpg"] == "ai"


def test_it_counts_in_its_own_branch_only() -> None:
    paths = ["train/ai/0.png", "train/nature/1.png", "val/nature/2.png"]
    message = refused(paths)
    assert "unknown label folder: val/nature (1 files)" in message and "train/nature" not in message
    assert "human, nature, photo only beside one of the other label" in message


def test_beside_a_folder_that_the_settings_name() -> None:
    paths = ["midjourney/0.png", "nature/1.png"]
    assert "midjourney (1 files), nature (1 files)" in refused(paths)
    assert told(paths, labels={"midjourney": "ai"}) == {"midjourney/0.png": "ai", "nature/1.png": "real"}
    assert told(["nature/1.png"], labels={"Nature": "ai"}) == {"nature/1.png": "ai"}


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [
        ("ai/real/a.jpg", "'ai' says ai", "'real' says real"),
        ("real/ai/a.jpg", "'real' says real", "'ai' says ai"),
        ("REAL/2024/deep/Fake/more/a.jpg", "'REAL' says real", "'Fake' says ai"),
        ("train/fake/non_ai/a.jpg", "'fake' says ai", "'non_ai' says real"),
    ],
)
def test_a_path_that_says_both_is_an_error_that_names_both(path: str, first: str, second: str) -> None:
    message = refused(["ai/0.jpg", "real/1.jpg", path])
    folder = str(Path(path).parent)
    assert (
        f"place: folders that say both labels: {folder} (1 files: {first}, {second}); nothing was ingested" in message
    )
    # What it says to do helps.
    between = folder.removeprefix("train/").removesuffix("/more")
    assert f"`labels: {{{between}: ai}}` or `labels: {{{between}: real}}`" in message
    for label in ("ai", "real"):
        assert told(["ai/0.jpg", "real/1.jpg", path], labels={between: label})[path] == label
    assert told([path], label="real") == {path: "real"}


def test_a_word_beside_the_other_label_can_say_both_too() -> None:
    assert "'real' says real, 'ai' says ai" in refused(["real/train/ai/0.jpg", "real/train/nature/1.jpg"])
    assert "'ai' says ai, 'nature' says real" in refused(["x/ai/fake/0.jpg", "x/ai/nature/1.jpg"])


@pytest.mark.parametrize(
    "root", ["ai_vs_real", "real-vs-fake", "ai", "real", "photo", "Nature", "fake_or_human", "cifake"]
)
def test_the_name_of_a_data_set_is_no_label_of_what_says_both(root: str) -> None:
    paths = ["train/real/0.jpg", "train/fake/1.jpg", "test/photo/2.jpg", "test/fake/3.jpg"]
    labels = ["real", "ai", "real", "ai"]
    assert told(paths, root) == dict(zip(paths, labels, strict=True))
    inside = [f"{root}-x/{path}" for path in paths]
    assert told(inside) == dict(zip(inside, labels, strict=True))
    assert "loose" in refused([*paths, "loose/4.jpg"], root)


def test_what_a_source_is_called_counts_where_nothing_inside_says_otherwise() -> None:
    assert told(["0.jpg", "cats/1.jpg"], "fake") == {"0.jpg": "ai", "cats/1.jpg": "ai"}
    assert told(["nature/1.jpg", "human/2.jpg"], "ai") == {"nature/1.jpg": "ai", "human/2.jpg": "ai"}
    assert "unknown label folder: ." in refused(["0.jpg"], "photo")
    message = refused(["flux/0.jpg", "real/1.jpg"], "ai")
    assert "real (1 files: 'ai' says ai, 'real' says real)" in message
    assert told(["flux/0.jpg", "real/1.jpg"], "ai", labels={"ai/real": "real"})["real/1.jpg"] == "real"


def test_folders_with_numbers_by_the_settings() -> None:
    paths = ["train/0_real/a.jpg", "train/1_fake/b.jpg"]
    said = {"0_real": "real", "1_fake": "ai"}
    assert told(paths, labels=said) == {paths[0]: "real", paths[1]: "ai"}
    assert told(paths, "ai", labels=said) == {paths[0]: "real", paths[1]: "ai"}
    assert "train/0_real (1 files), train/1_fake (1 files)" in refused(paths)


def test_accents_are_compared_however_they_are_stored() -> None:
    assert told(["fotografi\u0301as/a.jpg"], labels={"fotograf\u00edas": "real"}) == {"fotografi\u0301as/a.jpg": "real"}


def test_a_longer_rule_knows_better() -> None:
    assert told(["unsplash/real/a.jpg"], name="photos", labels={"unsplash/real": "ai"}) == {"unsplash/real/a.jpg": "ai"}
    assert told(["a/ai/b.jpg", "a/ai/x/c.jpg"], labels={"ai/x": "real"}) == {"a/ai/b.jpg": "ai", "a/ai/x/c.jpg": "real"}


@pytest.mark.parametrize(
    ("link", "own", "is_torn"),
    [
        ("real", "ai/", True),
        ("real/b.jpg", "ai/a.jpg", True),
        ("ai/b.jpg", "ai/a.jpg", False),
        ("ai/x", "ai/y/", False),
    ],
)
def test_a_link_to_what_has_the_other_label(link: str, own: str, is_torn: bool) -> None:
    labels = Labels(_entry("mine", Source()), "place", list)
    labels.hold_together(LeftOut(link, "link seen before", own))
    if not is_torn:
        return labels.check()
    with pytest.raises(StageError, match=r"both labels are said of the same files: '.*' is a link to what '.*' is;"):
        labels.check()


def test_only_a_source_that_needs_it_is_listed(write_files: Callable[..., Path]) -> None:
    def never() -> list[str]:
        raise AssertionError

    labels = Labels(_entry("mine", Source()), "place", never)
    assert (labels.of("x/ai/0.jpg"), labels.of("x/REAL/1.jpg")) == ("ai", "real")


def test_a_generator_s_folder_lies_above_the_label_s_and_the_split_s() -> None:
    paths = {
        "Midjourney/train/ai/0.png": "Midjourney",
        "Stable Diffusion V1.4/val/ai/1.png": "Stable Diffusion V1.4",
        "train/ADM/ai/2.png": "ADM",
        "GLIDE/ai/3.png": "GLIDE",
        "train/ai/4.png": None,
        "ai/5.png": None,
    }
    labels = Labels(_entry("genimage", Source()), "place", lambda: paths)
    assert {path: labels.generator(path) for path in paths} == paths
    inside = Labels(_entry("genimage", Source()), "place", lambda: ["train/ai/0.png"], root="Midjourney")
    assert inside.generator("train/ai/0.png") == "Midjourney"
