"""Small pictures, files and commands that several tests need."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.ingest import ingest
from components.params import Ingest, Source

ROOT = Path(__file__).parents[1]

Files = dict[str, bytes]


def make_picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth picture with some texture; each seed gives another one."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 236, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_tree(root: Path, files: Files) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    return make_picture


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encode_image


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """The JPEG file of `picture(seed)`."""
    return lambda seed, size=(48, 40), quality=90: encode_image(make_picture(seed, size), "JPEG", quality=quality)


@pytest.fixture(scope="session")
def write_files() -> Callable[[Path, Files], Path]:
    return write_tree


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Ingest files as a source of one's own; gives the data folder back."""

    def ingest_files(files: Files, name: str = "mine", **settings: Any) -> Path:
        folder = write_tree(tmp_path / "incoming" / name, files)
        section = Ingest.model_validate({"sources": {name: {}}, **settings})
        ingest(name, Source(**{"from": str(folder)}), section, tmp_path / "data", tmp_path / "receipts")
        return tmp_path / "data"

    return ingest_files


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a stage's command in the test's own folder, with `params` as its params.yaml."""

    def run(stage: str, *arguments: str, params: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, "-m", f"components.{stage}", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
