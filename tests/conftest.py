"""Small pictures, files and commands that several tests need."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.ingest import ingest
from components.params import Ingest, Source

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run those that take minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless it is asked for, or named."""
    named = any("::" in argument for argument in config.args)
    if not (config.getoption("--slow") or named):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: `make test SLOW=1` runs it"))


@pytest.fixture(autouse=True)
def in_float32() -> Iterator[None]:
    """A training sets the number format of its process; the next test's process is the same."""
    yield
    if "tensorflow" in sys.modules:
        import keras
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})
        keras.mixed_precision.set_global_policy("float32")


def make_picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth picture with some texture; each seed gives another one."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 236, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    return make_picture


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encode_image


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    return lambda seed, size=(48, 40): encode_image(make_picture(seed, size), "JPEG", quality=90)


@pytest.fixture(scope="session")
def write_files() -> Callable[..., Path]:
    return write_tree


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: that of `CHROMIUM`, of the PATH, or playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with playwright.sync_playwright() as running:
        try:
            started = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser is here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Ingest files as a source of one's own; gives the data folder back."""

    def run(files: dict[str, bytes], name: str = "mine", **settings: Any) -> Path:
        source = Source.model_validate({"from": str(write_tree(tmp_path / "incoming" / name, files))})
        section = Ingest.model_validate({"sources": {name: {}}, **settings})
        ingest(name, source, section, tmp_path / "data", tmp_path / "receipts")
        return tmp_path / "data"

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a stage's command in the test's own folder, with `params` as its params.yaml."""

    def run(stage: str, *arguments: str, params: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        call = [sys.executable, "-m", f"components.{stage}", *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return run
