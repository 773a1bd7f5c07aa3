"""CIFAKE from its archive to arrays: 110,008 images, ingested and preprocessed, against unpacking and a loop.

Takes the archive from the folder that TRUEFRAME_TEST_DATA names.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def run() -> str:
    where = os.environ.get("TRUEFRAME_TEST_DATA")
    if not where:
        return "Ingestion of CIFAKE: left out, TRUEFRAME_TEST_DATA names no folder with cifake.tar.xz\n"
    archive = Path(where) / "cifake.tar.xz"
    lines = ["CIFAKE, 110,008 JPEG of 32 px, from the archive to arrays (s)"]
    with tempfile.TemporaryDirectory() as folder:
        stages = {
            "ingest": ["cifake", "--from", str(archive)],
            "validate": [],
            "preprocess": [],
        }
        seconds = {}
        for stage, arguments in stages.items():
            began = time.perf_counter()
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    f"components.{stage}",
                    "--params",
                    str(ROOT / "presets/cifake.yaml"),
                    *arguments,
                ],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds[stage] = time.perf_counter() - began
            lines.append(f"| {stage} | {seconds[stage]:.1f} |")
        lines.append(f"| ingest and preprocess together | {seconds['ingest'] + seconds['preprocess']:.1f} |")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(["tar", "xf", str(archive), "-C", folder], check=True)
        arrays = [_usual(path) for path in sorted(Path(folder).rglob("*.jpg"))]
        usual = time.perf_counter() - began
        lines.append(f"| unpack, then open, resize and append in a loop ({len(arrays):,} images) | {usual:.1f} |")
    return "\n".join(lines) + "\n"


def _usual(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS), np.float32) / 255
