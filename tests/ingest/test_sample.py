"""The sample's classes differ in their traces, and in nothing that a shortcut could use."""

import io
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import laplace
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from components.ingest.sample import GENERATORS, generator_name, make_image

COUNT = 3000
FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)

Files = list[tuple[bytes, str]]
Floats = NDArray[np.float64]


def pixels(file: bytes) -> Floats:
    return np.asarray(Image.open(io.BytesIO(file)), dtype=float)


def separation(labels: Floats, scores: Floats) -> float:
    """The area under the ROC curve, whichever class has the higher scores."""
    area = roc_auc_score(labels, scores)
    return max(area, 1 - area)


@pytest.fixture(scope="module")
def files() -> Files:
    return [make_image(index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def labels(files: Files) -> Floats:
    return np.array([label == "ai" for _, label in files], dtype=float)


@pytest.fixture(scope="module")
def images(files: Files) -> Floats:
    return np.stack([pixels(file) for file, _ in files])


@pytest.fixture(scope="module")
def trivial(files: Files, images: Floats) -> Floats:
    """File size, and mean and standard deviation of each colour."""
    sizes = [len(file) for file, _ in files]
    return np.column_stack([sizes, images.mean(axis=(1, 2)), images.std(axis=(1, 2))])


@pytest.mark.parametrize("index", [0, 1, 3, 5])
def test_same_arguments_give_same_bytes(index: int) -> None:
    image = make_image(index, size=32, seed=3)
    make_image(index + 1, size=32, seed=4)
    assert make_image(index, size=32, seed=3) == image
    assert make_image(index, size=32, seed=4) != image
    assert make_image(index + 2, size=32, seed=3) != image


@pytest.mark.parametrize("size", [16, 64, 100])
def test_files_are_rgb_jpegs_of_the_size_asked_for(size: int) -> None:
    for index in range(2):
        image = Image.open(io.BytesIO(make_image(index, size=size)[0]))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))


@pytest.mark.parametrize(("index", "size"), [(-1, 64), (0, 0), (0, 12), (0, 66)])
def test_arguments_out_of_range_are_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="must"):
        make_image(index, size=size)


def test_labels_and_generators_are_balanced(files: Files) -> None:
    assert Counter(label for _, label in files) == {"real": COUNT // 2, "ai": COUNT // 2}
    assert [label for _, label in files[:4]] == ["real", "ai", "real", "ai"]
    names = Counter(map(generator_name, range(COUNT)))
    assert names.pop(None) == COUNT // 2
    assert names == dict.fromkeys(GENERATORS, COUNT // 2 // len(GENERATORS))


def test_images_fill_the_range_of_values(images: Floats) -> None:
    assert 80 < images.mean() < 160
    assert images.std(axis=(1, 2, 3)).min() > 8
    assert (images == 255).mean() < 0.05


def test_classes_share_jpeg_tables_and_subsampling(files: Files) -> None:
    settings: dict[str, Counter[tuple[int, ...]]] = {"real": Counter(), "ai": Counter()}
    for file, label in files:
        image = Image.open(io.BytesIO(file))
        luma = tuple(image.quantization[0])  # type: ignore[attr-defined]
        horizontal = image.layer[0][1]  # type: ignore[attr-defined]
        settings[label][(*luma, horizontal)] += 1
    assert settings["real"].keys() == settings["ai"].keys()
    shared = settings["real"].keys()
    # Two-sample chi-squared statistic: about one per setting when the distributions are the same.
    statistic = sum(
        (settings["real"][key] - settings["ai"][key]) ** 2 / (settings["real"][key] + settings["ai"][key])
        for key in shared
    )
    assert statistic < 2 * len(shared)


def test_simple_statistics_do_not_separate_the_classes(trivial: Floats, labels: Floats) -> None:
    for model in (
        make_pipeline(StandardScaler(), LogisticRegression()),
        GradientBoostingClassifier(n_estimators=60, max_depth=2, random_state=0),
    ):
        scores = cross_val_predict(model, trivial, labels, cv=FOLDS, method="predict_proba")[:, 1]
        assert separation(labels, scores) <= 0.60


def test_no_single_statistic_separates_the_classes(trivial: Floats, images: Floats, labels: Floats) -> None:
    sharpness = laplace(images, axes=(1, 2)).var(axis=(1, 2))
    grey = laplace(images.mean(axis=3), axes=(1, 2)).var(axis=(1, 2))
    for feature in np.column_stack([trivial, sharpness, grey]).T:
        assert separation(labels, feature) <= 0.65


def test_the_trace_is_in_the_spectrum(images: Floats, labels: Floats) -> None:
    """Mean power in frequency bands finds most decoded images: there is something to learn."""
    power = np.abs(np.fft.rfft2(images, axes=(1, 2))[:, :, :32]) ** 2
    bands = np.log1p(power).reshape(COUNT, 16, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(COUNT, -1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=500))
    scores = cross_val_predict(model, bands, labels, cv=FOLDS, method="predict_proba")[:, 1]
    assert 0.80 < roc_auc_score(labels, scores) < 0.995
