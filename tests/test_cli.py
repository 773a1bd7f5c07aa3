"""The command line where it needs no trained model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
TRUEFRAME = str(Path(sys.executable).parent / "trueframe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "presets/sample.yaml", tmp_path / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return tmp_path


def trueframe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # What a test before said to MLflow in this process counts for no command.
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run([TRUEFRAME, *arguments], cwd=folder, env=env, capture_output=True, text=True)


def test_help_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys\nsys.argv = ['trueframe', '--help']\n"
        "from flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'tensorflow', 'keras', 'great_expectations', 'prefect', 'mlflow', 'pandas', 'pyarrow', 'dvc'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
    for command in (
        "use",
        "params",
        "sources",
        "ingest",
        "forget",
        "run",
        "tune",
        "generalise",
        "schedule",
        "check",
        "serve",
        "ui",
        "export",
        "review",
        "models",
        "promote",
        "rollback",
        "reproduce",
        "doctor",
    ):
        assert command in done.stdout


def test_use_says_what_changes_and_keeps_a_changed_file(folder: Path) -> None:
    done = trueframe(folder, "use", "cifake")
    assert done.returncode == 0
    assert "-    sample: {}" in done.stdout and "+    cifake: {}" in done.stdout
    assert (folder / "params.yaml").read_text() == (folder / "presets/cifake.yaml").read_text()

    changed = (folder / "params.yaml").read_text() + "# mine\n"
    (folder / "params.yaml").write_text(changed)
    done = trueframe(folder, "use", "art")
    assert done.returncode == 1
    assert "changed by hand" in done.stderr and "--force" in done.stderr
    assert (folder / "params.yaml").read_text() == changed
    assert trueframe(folder, "use", "art", "--force").returncode == 0
    assert (folder / "params.yaml").read_text() == (folder / "presets/art.yaml").read_text()

    done = trueframe(folder, "use", "nothing")
    assert done.returncode == 1
    for path in (ROOT / "presets").rglob("*.yaml"):
        assert path.relative_to(ROOT / "presets").with_suffix("").as_posix() in done.stderr
    assert trueframe(folder, "use", "seeds/art-cnn150").returncode == 0
    assert (folder / "params.yaml").read_text() == (folder / "presets/seeds/art-cnn150.yaml").read_text()


def test_a_preset_takes_over_the_sources(folder: Path) -> None:
    own = (folder / "params.yaml").read_text().replace("    sample: {}", "    mine: {from: pictures}  # at home")
    assert "mine" in own
    (folder / "params.yaml").write_text(own)
    done = trueframe(folder, "use", "art")
    assert done.returncode == 1 and "--keep-sources" in done.stderr
    assert trueframe(folder, "use", "art", "--keep-sources").returncode == 0
    text = (folder / "params.yaml").read_text()
    wanted = yaml.safe_load((folder / "presets/art.yaml").read_text())
    wanted["ingest"]["sources"] = {"mine": {"from": "pictures"}}
    assert yaml.safe_load(text) == wanted
    assert "# The Kaggle set" in text, "its comments stay"
    (folder / "params.yaml").write_text(text.replace("epochs: 60", "epochs: 61"))
    done = trueframe(folder, "use", "cifake", "--keep-sources")
    assert done.returncode == 1 and "changed by hand" in done.stderr


def test_params_and_their_schema(folder: Path) -> None:
    shown = json.loads(trueframe(folder, "params").stdout)
    assert shown["train"]["models"]["cnn"]["precision"] == "auto"  # a default that the file doesn't hold
    schema = json.loads(trueframe(folder, "params", "--schema").stdout)
    assert {"ingest", "train", "register", "serve", "monitor"} < set(schema["properties"])


@pytest.mark.parametrize("command", [["params"], ["sources"], ["run"], ["models"], ["check", "params.yaml"]])
def test_a_typo_in_the_settings_stops_every_command(folder: Path, command: list[str]) -> None:
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings["train"]["models"]["cnn"]["epoch"] = 3
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    done = trueframe(folder, *command)
    assert done.returncode == (2 if command[0] == "check" else 1)
    assert done.stderr.count("\n") == 1
    assert "train.models.cnn.epoch" in done.stderr and "epochs" in done.stderr


def test_commands_find_the_project_from_a_folder_in_it(folder: Path) -> None:
    (folder / "deep/er").mkdir(parents=True)
    assert trueframe(folder / "deep/er", "params").stdout == trueframe(folder, "params").stdout


def test_ingest_keeps_the_comments_in_params(folder: Path) -> None:
    (folder / "pictures/ai").mkdir(parents=True)
    from PIL import Image

    Image.effect_noise((32, 32), 60).convert("RGB").save(folder / "pictures/ai/1.png")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    done = trueframe(folder, "ingest", "mine", "--from", "pictures")
    assert done.returncode == 0, done.stderr
    text = (folder / "params.yaml").read_text()
    assert "# a decoder's traces are periodic" in text
    assert yaml.safe_load(text)["ingest"]["sources"] == {"sample": {}, "mine": {"from": "pictures"}}
    assert (folder / "data.dvc").exists()
    assert "made-up pictures of `sample` are trained on too" in done.stdout and "--only" in done.stdout
    done = trueframe(folder, "ingest", "mine", "--only")
    assert done.returncode == 0 and "ingest.sources.mine is used from now on, without sample" in done.stdout
    assert list(yaml.safe_load((folder / "params.yaml").read_text())["ingest"]["sources"]) == ["mine"]
    assert "made-up" not in done.stdout


def test_ingest_keeps_what_it_was_told_and_forget_removes(folder: Path) -> None:
    from PIL import Image

    for number in range(6):
        path = folder / f"pictures/holiday/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 20 + 20 * number).convert("RGB").save(path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    done = trueframe(folder, "ingest", "mine", "--from", "pictures", "--label", "real", "--max-images", "5")
    assert done.returncode == 0, done.stderr
    kept = yaml.safe_load((folder / "params.yaml").read_text())["ingest"]["sources"]["mine"]
    assert kept == {"from": "pictures", "label": "real", "max_images": 5}
    assert "mine: 5 images added" in done.stdout

    before = (folder / "data.dvc").read_text()
    done = trueframe(folder, "forget", "--origin", "holiday/[12].png", "--reason", "asked for")
    assert done.returncode == 0, done.stderr
    assert "2 images removed" in done.stdout and "dvc gc" in done.stdout
    assert (folder / "data.dvc").read_text() != before
    log = json.loads((folder / "data/forgotten.json").read_text())
    assert [image["origin"] for image in log] == ["holiday/1.png", "holiday/2.png"]
    done = trueframe(folder, "forget", "0123456789")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_sources_is_a_table_of_the_catalogue(folder: Path) -> None:
    shown = trueframe(folder, "sources").stdout
    for words in ("cifake", "MIT", "community-forensics-small", "hf://OwensLab/CommunityForensics-Small", "sample"):
        assert words in shown


def test_the_reference_detector_answers_until_there_is_a_champion(folder: Path) -> None:
    Image.new("RGB", (200, 150), "red").save(folder / "picture.png")
    done = trueframe(folder, "check", "picture.png", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    assert "no champion yet" in done.stderr and "model_card.md" in done.stderr
    [row] = json.loads((folder / "out.json").read_text())
    assert row["model_version"] == "reference-wild" and row["error"] is None
    assert row["verdict"] == "uncertain" and "unlike" in row["warnings"][0], "it is no picture"


def test_nothing_registered_yet_is_one_line(folder: Path) -> None:
    for command in (["models"], ["rollback"], ["serve"], ["check", "params.yaml", "--version", "1"]):
        done = trueframe(folder, *command)
        assert done.returncode == (2 if command[0] == "check" else 1), command
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "trueframe run" in done.stderr or "promote" in done.stderr


def test_settings_that_cant_be_read_are_one_line_for_use(folder: Path) -> None:
    for content, word in (
        (b"# caf\xe9\n", "not UTF-8"),
        (b"ingest: [\n", "no sources that can be kept"),
        (b"- a\n", "no"),
    ):
        (folder / "params.yaml").write_bytes(content)
        done = trueframe(folder, "use", "art", "--keep-sources")
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and word in done.stderr, done.stderr
