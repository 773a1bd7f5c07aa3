"""Whatever the bytes: pixels or an ImageError, metadata or none; no other exception, no crash, no hang."""

import faulthandler
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LONGEST = 120  # seconds for one file, on a machine that is busy; a hang lasts longer


def test_broken_files_are_refused_or_read() -> None:
    """In a process of its own, since a crash in a codec takes its process with it."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    call = [sys.executable, "-X", "faulthandler", "-c", "import test_fuzz; test_fuzz.feed()"]
    done = subprocess.run(call, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["files"] >= 2_000
    assert found["files"] / 3 < found["refused"] < found["files"]  # the damage is real, and some is harmless
    assert found["said"] > 100  # metadata outlives some damage, and is read
    assert found["mebibytes"] < 1_200  # of 88 megapixels; a bomb that goes off takes several times that


def feed() -> None:
    """Feed the corpus, and damaged C2PA manifests, to the readers; prints what became of them."""
    import fuzz
    import signing

    from components import images
    from components.serve import provenance

    warnings.simplefilter("ignore")
    refused = said = files = 0
    authority = signing.Authority()
    kinds = {"jpeg-progressive": "jpeg", "png-palette": "png", "webp-lossless": "webp", "gif": "gif", "heic": "heic"}
    signed = [
        (f"c2pa-{kind}-{number}", broken)
        for name, kind in kinds.items()
        for number, broken in enumerate(
            fuzz.damaged(authority.sign(fuzz.valid()[name], f"image/{kind}"), 60, seed=len(kind))
        )
    ]
    images.decode(fuzz.png(1, 1))
    before = _peak()
    for name, data in (*fuzz.corpus(), *signed):
        faulthandler.dump_traceback_later(_LONGEST, exit=True)
        files += 1
        try:
            image = images.open_image(data)
            quality = images.jpeg_quality(image)
            assert quality is None or isinstance(quality, float), name
            assert images.to_rgb(image).mode == "RGB", name
        except images.ImageError as error:
            assert len(str(error)) < 500, name
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error
        found = provenance.read(data)
        said += len(found) > 1
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        assert len(text.encode()) < 20_000, name
    faulthandler.cancel_dump_traceback_later()
    peak = _peak() - before
    print(json.dumps({"files": files, "refused": refused, "said": said, "mebibytes": round(peak)}))


def _peak() -> float:
    """Most memory that this process ever had, MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
