"""The detector for other programs: its own file, LiteRT, a page in the browser alone, a Hugging Face Space."""

import base64
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

import components
from components import images, integrity, networks, stage
from components.detector import build
from components.detector.familiarity import Familiarity
from components.detector.file import Network, complete
from components.detector.wording import words
from components.serve import reference
from components.serve.files import Files
from components.stage import StageError

Format = Literal["onnx", "litert", "browser", "space"]
_WIDEST = 8192  # features, as in `components.detector.compile`
_ROOT = Path(components.__file__).parents[1]
_RUNTIME = "onnxruntime-web"
_RUNTIME_VERSION = "1.30.0"
_RUNTIME_HASH = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def export(detectors: Sequence[Files], version: str, form: Format, folder: Path) -> list[Path]:
    """Write a detector so that it works without this project.

    Args:
        detectors: that answer together, each for a range of sizes; mostly one.
        version: that they are.
        form: `onnx` and `litert` write a model file for each and `detectors.json` (see `described`); `browser` a
            static page around the ONNX files; `space` a Hugging Face Space.
        folder: new or empty.

    Returns:
        What was written.

    Raises:
        StageError: the folder has something in it, a package is missing, or the browser's runtime can't be had.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StageError(f"{folder}: is there already; name a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    if form == "space":
        _space(detectors, version, folder)
    else:
        _models(detectors, version, "litert" if form == "litert" else "onnx", folder)
    if form == "browser":
        shutil.copytree(_ROOT / "deploy" / "browser", folder, dirs_exist_ok=True)
        _runtime(folder / "runtime")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def described(files: Files, version: str, model: str, dtype: str = "uint8") -> dict[str, Any]:
    """What a caller of an exported model needs to know: an entry of `detectors.json`.

    A picture becomes 8-bit RGB, upright, transparency over white. Where `equalise` is set, it goes through that
    encoding (`components.images.equalise`); then each of `inputs` wants it in its `view` (`components.images.render`):
    0 to 255, as its `dtype` says, shape (n, *shape). The answers are, for each picture, `logit` and, of most detectors,
    `distance` (above 1, it is unlike what the detector was judged on). P(ai), calibrated, is
    1 / (1 + exp(-logit / temperature)). At or above `high` the verdict is `ai`, below `low` it is `real`, else
    `uncertain`; and so it is where `distance` is above 1, or the shorter side outside of `scope`. `words` say what each
    verdict means. With the size `view` in `equalise`, each view goes through the encoding by itself.
    """
    fitted = files.fitted
    return {
        "model": model,
        "version": version,
        "inputs": [
            {"name": _input(number), "view": view, "shape": list(images.view_shape(view)), "dtype": dtype}
            for number, view in enumerate(_views(fitted))
        ],
        "equalise": fitted.get("equalise"),
        "words": words(fitted),
        **{key: fitted[key] for key in ("temperature", "threshold", "low", "high", "scope")},
        "about": files.card.read_text().partition("\n## ")[0].partition("\n")[2].strip(),
    }


def _models(detectors: Sequence[Files], version: str, form: Literal["onnx", "litert"], folder: Path) -> None:
    entries = []
    # Of two for the same pictures the better one comes last.
    order = sorted(detectors, key=lambda one: (one.fitted["scope"]["min_side"], one.is_large))
    for number, files in enumerate(order):
        name = f"detector{number or ''}.{'onnx' if form == 'onnx' else 'tflite'}"
        if form == "onnx":
            (folder / name).write_bytes(complete(files.detector))
        else:
            _litert(Together.load(files), folder / name)
        shutil.copy(files.card, folder / f"model_card{number or ''}.md")
        known_as = f"{reference.VERSION}-{files.card.parent.name}" if reference.title(version) else version
        entries.append(described(files, known_as, name, "uint8" if form == "onnx" else "float32"))
    (folder / "detectors.json").write_text(json.dumps(entries, indent=1) + "\n")


@dataclass(frozen=True)
class Together:
    """A detector's networks, calibration and familiarity as one function of arrays.

    Attributes:
        members: for each its network, as far as its logit and its features, and its temperature.
        shapes: of one picture, as each member sees it.
        temperature: of the whole.
        familiar: that was fitted; null where there are no features.
    """

    ANSWERS: ClassVar = ("logit", "probability", "distance")

    members: Sequence[tuple[Any, bool, float]]
    shapes: Sequence[tuple[int, ...]]
    temperature: float
    familiar: Familiarity | None

    @classmethod
    def load(cls, files: Files) -> "Together":
        """From a detector's files.

        Raises:
            StageError: its Keras networks aren't kept, or are others than those that it was compiled from.
        """
        members = files.fitted["members"]
        if files.networks is None or set(files.networks) < {m["name"] for m in members}:
            raise StageError(
                f"{files.detector}: LiteRT is made of the Keras networks that a version's run keeps, and of this one "
                "none are kept; `--format onnx` needs none"
            )
        parts = [(*_outputs(files.networks[m["name"]]), m["temperature"]) for m in members]
        shapes = [images.view_shape(view) for view in _views(files.fitted)]
        together = cls(parts, shapes, files.fitted["temperature"], build.familiar(files.detector))
        noise = [np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8) for shape in shapes]
        registered = Network(files.detector)
        wanted = registered.outputs(dict(zip(registered.inputs, noise, strict=True)), ["logit"])["logit"]
        if not np.allclose(together(*(x.astype(np.float32) for x in noise))["logit"], wanted, rtol=1e-3, atol=1e-3):
            raise StageError(
                f"{files.detector}: the Keras networks that its run keeps are others; nothing was exported"
            )
        return together

    def __call__(self, *pixels: Any) -> dict[str, Any]:
        """Logit, probability and distance of pictures, from float32 pixels for each member."""
        import tensorflow as tf

        logits, features = [], []
        for x, (network, has_features, temperature), shape in zip(pixels, self.members, self.shapes, strict=True):
            crops = shape[0] if len(shape) == 4 else 1
            z, found = network(tf.reshape(x, (-1, *shape[-3:])), training=False)
            logits.append(tf.reduce_mean(tf.reshape(tf.cast(z, tf.float32), (-1, crops)), 1) / temperature)
            if has_features:
                found = tf.reshape(tf.cast(found, tf.float32), (-1, crops, found.shape[-1]))
                features.append(tf.reduce_mean(found, 1))
        logit = tf.add_n(logits) / len(logits)
        distance = self._distance(tf.concat(features, 1)) if self.familiar else 0 * logit
        answers = logit, tf.sigmoid(logit / self.temperature), distance
        return dict(zip(self.ANSWERS, answers, strict=True))

    def _distance(self, features: Any) -> Any:
        """`Familiarity.distances` as a graph."""
        import tensorflow as tf

        f = self.familiar
        assert f is not None
        ratios = []
        for mean in f.means:
            apart = features / f.scale - mean
            along = tf.linalg.matmul(apart, f.directions)
            inside = tf.reduce_sum((along / f.spread) ** 2, 1)
            outside = tf.zeros_like(inside)
            if f.directions.shape[1] < f.directions.shape[0]:
                outside = tf.maximum(tf.reduce_sum(apart**2, 1) - tf.reduce_sum(along**2, 1), 0.0)
            ratios.append((inside, outside))
        nearer = [tf.sqrt(tf.minimum(*pair)) for pair in zip(*ratios, strict=True)]
        return tf.maximum(*(one / limit for one, limit in zip(nearer, f.limits, strict=True)))

    def signature(self, n: int | None) -> list[Any]:
        """What it takes, for n pictures at once."""
        import tensorflow as tf

        return [tf.TensorSpec([n, *shape], tf.float32, name=_input(i)) for i, shape in enumerate(self.shapes)]


def _outputs(path: Path) -> tuple[Any, bool]:
    """A network as far as its logit and its pooled features, and whether it has such."""
    keras = networks.load_keras()
    model = networks.load(path)
    pooled = next((x.output for x in model.layers if x.name == "features" and len(x.output.shape) == 2), None)
    has = pooled is not None and pooled.shape[1] <= _WIDEST
    return keras.Model(model.input, [model.output, pooled if has else model.output]), has


def _views(fitted: dict[str, Any]) -> list[str]:
    return [member["view"] for member in fitted["members"]]


def _input(number: int) -> str:
    return f"pixels{number or ''}"


def _litert(together: Together, path: Path) -> None:
    _tensorflow()
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = together.signature(1)
    # The converter leaves variables of Keras's layers unread; as constants they can't be.
    frozen = convert_variables_to_constants_v2(tf.function(together, input_signature=signature).get_concrete_function())
    names = sorted(together.ANSWERS)  # the order in which a function's dict comes apart
    module = tf.Module()
    module.answer = tf.function(
        lambda *pixels: dict(zip(names, frozen(*pixels), strict=True)), input_signature=signature
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": module.answer})
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def _tensorflow() -> None:
    if networks.load_keras().backend.backend() != "tensorflow":
        raise StageError("export needs Keras on TensorFlow; unset KERAS_BACKEND")


def _runtime(folder: Path) -> None:
    """onnxruntime-web from the npm registry that the user's settings name, checked against its known hash."""
    folder.mkdir()
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org")
    url = f"{registry.rstrip('/')}/{_RUNTIME}/-/{_RUNTIME}-{_RUNTIME_VERSION}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise StageError(
            f"{url}: {error}; it holds the runtime for the browser. NPM_CONFIG_REGISTRY names another registry"
        ) from None
    if f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}" != _RUNTIME_HASH:
        raise StageError(f"{url}: not the file that is known by that name; nothing of it was used")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for name in _RUNTIME_FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())


def _space(detectors: Sequence[Files], version: str, folder: Path) -> None:
    """The folder `space/`, completed by the packages that it runs and the detectors."""
    shutil.copytree(_ROOT / "space", folder, dirs_exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in ("components", "flows"):
        shutil.copytree(_ROOT / package, folder / package, ignore=ignored)
    for number, files in enumerate(detectors):
        name = files.card.parent.name if reference.title(version) else f"detector{number or ''}"
        target = Files.kept(folder / "models" / name)
        target.card.parent.mkdir(parents=True)
        target.detector.write_bytes(complete(files.detector))
        shutil.copyfile(files.card, target.card)
        integrity.write(target.card.parent)
    stage.replace(folder / "models" / "version", lambda partial: partial.write_text(f"{version}\n"))
