"""Detectors that were registered as Keras networks, before there was one file for all that answers."""

import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from components import images
from components.detector.familiarity import Familiarity
from components.stage import StageError, replace


def compiled(network: Path, decision: Path, familiar: Path, file: Path) -> Path:
    """Make a detector's file of the files that there were before.

    Args:
        network: a `.keras` file, or the folder with one for each member.
        decision: `decision.json`.
        familiar: `familiar.npz`.
        file: to write, unless it is there from an earlier time.

    Returns:
        `file`.

    Raises:
        StageError: what trains isn't installed here, or a network can't be compiled.
    """
    if file.exists():
        return file
    try:
        made = _made(network, decision, familiar, file)
    except ImportError as error:
        raise StageError(
            f"{network}: a version from before there were detector files; compiling it needs {error.name}: "
            "`pip install -e '.[train]'` in the clone"
        ) from None
    except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:  # what readers say of damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(f"{network.parent}: no network with its decision ({reason}); register it again") from None
    replace(file, lambda partial: partial.write_bytes(made))
    return file


def _made(network: Path, decision: Path, familiar: Path, file: Path) -> bytes:
    from components import networks
    from components.detector import build, compile

    networks.load_keras()
    fitted = json.loads(decision.read_text())
    seen = fitted.pop("members", None) or [{"name": network.stem, "view": fitted.pop("view"), "temperature": 1.0}]
    members = []
    for one in seen:
        of = network / f"{one['name']}.keras" if network.is_dir() else network
        graph = file.with_name(f"{one['name']}.onnx")
        noise = np.random.default_rng(0).integers(0, 256, (8, *images.view_shape(one["view"])), dtype=np.uint8)
        compile.write(of, one["view"], noise, graph)
        members.append(build.Member(one["name"], graph.read_bytes(), one["view"], one["temperature"]))
        graph.unlink()
    about = {"equalise": None, **fitted}
    return build.finished(build.joined(members), members, Familiarity.load(familiar), about)
