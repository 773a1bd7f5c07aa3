"""`python local_kubeflow.py ROOT`: the pipeline of this folder, run here by `kfp.local`.

Its runner of subprocesses takes Python components alone, so each stage is one, around the command of its container.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kfp import dsl, local

from components import params, tracking
from flows import kubeflow

SOURCES = Path("local_components").resolve()


class Name(str):
    """What stands in the source as it is."""

    __repr__ = str.__str__


def component(stage: kubeflow.Stage, image: str) -> Any:
    """A stage as a component of Python, written to a file as kfp wants to read its source."""
    parameters = kubeflow.signature(stage).parameters
    kinds = {name: "str" if parameters[name].annotation is str else "dsl.OutputPath(str)" for name in parameters}
    given: dict[str, Any] = {name: Name(name) for name in parameters}
    if stage.report:
        kinds["report"], given["report"] = "dsl.Output[dsl.HTML]", SimpleNamespace(path=Name("report.path"))
    name = kubeflow.parameter(stage.name)
    source = (
        f"from kfp import dsl\n\n\ndef {name}({', '.join(f'{key}: {kind}' for key, kind in kinds.items())}) -> None:\n"
        "    import subprocess, sys\n"
        "    command = [sys.executable, '-m', 'components.remote']\n"
        f"    subprocess.run([*command, *{kubeflow.arguments(stage, given)!r}], check=True)\n"
    )
    file = SOURCES / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dsl.component(base_image="python", install_kfp_package=False)(getattr(module, name))


if __name__ == "__main__":
    tracking.connect()  # the stages' folders come and go; this is the one in which MLflow's artifacts are to be
    settings = params.load().kubeflow.model_copy(update={"image": "none", "root": sys.argv[1]})
    pipeline = kubeflow.pipeline(settings, component)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(Path("local_outputs").resolve()))
    pipeline()
