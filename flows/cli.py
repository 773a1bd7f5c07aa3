"""The command line. Each command is a convenience over the tools' own; what is heavy is imported when it is used."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.stage import StageError, fail, one_line, read_json

app = typer.Typer(
    help="Keeps a detector of AI-generated images up to date.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
kubeflow = typer.Typer(help="The retraining as a pipeline for Kubeflow.", no_args_is_help=True)
app.add_typer(kubeflow, name="kubeflow")
# Where nobody looks at a terminal, in a log or a pipe, no cell is cut off.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
VERSIONED = "data.dvc names this version of the data; commit it with git"
_ALONE = "in place of the champion: a number, or `reference`; it answers alone, whatever it was judged on"
START = Path.cwd()
"""Where the command was given: paths are relative to it, while the work is done in the project's folder."""


@app.command()
def use(
    preset: str,
    force: Annotated[bool, typer.Option(help="replace a params.yaml that was changed by hand")] = False,
    keep_sources: Annotated[
        bool, typer.Option("--keep-sources", help="train on the sources that are used now")
    ] = False,
) -> None:
    """Write params.yaml from presets/."""
    from flows import settings

    print(settings.use(preset, force=force, keep_sources=keep_sources))


@app.command()
def params(schema: Annotated[bool, typer.Option(help="the JSON schema of all settings")] = False) -> None:
    """The settings as they are read, defaults filled in."""
    from components import params as settings

    if schema:
        print(json.dumps(settings.Params.model_json_schema(by_alias=True), indent=2))
    else:
        print(settings.load().model_dump_json(by_alias=True, indent=2))


@app.command()
def sources() -> None:
    """The catalogue, and what of it is here."""
    from components.ingest import catalogue, summary
    from components.params import load
    from flows import commands

    commands.mend()
    known = catalogue.load()
    here = summary(Path("data")).set_index("source")
    used = load().ingest.sources
    table = Table("source", "title", "ai", "real", "used", "where", "licence")
    for name in [*known, *(n for n in dict.fromkeys([*here.index, *used]) if n not in known)]:
        entry = known.get(name, catalogue.Entry(title="your own"))
        counts = [f"{here.loc[name].get(label, 0):,}" if name in here.index else "–" for label in ("ai", "real")]
        where = (used[name].from_ if name in used else None) or entry.location or entry.page or ""
        table.add_row(name, entry.title, *counts, "yes" if name in used else "", where, entry.licence)
    console.print(table)


@app.command()
def ingest(
    name: str,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="a folder or an archive, s3://BUCKET/PREFIX, hf://OWNER/NAME, kaggle://OWNER/NAME, web:LIST, "
            "feedback:FOLDER",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="what all of its images are: ai or real")] = None,
    generator: Annotated[str | None, typer.Option(help="what made its images labelled ai")] = None,
    max_images: Annotated[int | None, typer.Option(min=1, help="at most so many, of both labels alike")] = None,
    per_generator: Annotated[int | None, typer.Option(min=1, help="at most so many of one generator")] = None,
    only: Annotated[bool, typer.Option("--only", help="use no other source from now on")] = False,
) -> None:
    """Bring a source's images in, and use it from now on."""
    from components import ingest as stage
    from components.params import Source, load
    from flows import commands, locks, settings, versions

    said = {
        "from": _place(from_) if from_ else None,
        "label": label,
        "generator": generator,
        "max_images": max_images,
        "per_generator": per_generator,
    }
    # A run's version would be said to be of data that it never saw.
    with locks.only_run(Path("artifacts")):
        commands.mend()
        section = load().ingest
        source = stage.with_words(section.sources.get(name, Source()), said)
        print(stage.summarised(name, stage.ingest(name, source, section, Path("data"), Path("artifacts/ingest"))))
        changed = settings.remember_source(name, only=only, **said)
        if changed:
            print(changed)
        versions.version()
    print(VERSIONED)
    if name != "sample" and "sample" in load().ingest.sources:
        print("the made-up pictures of `sample` are trained on too; `--only` takes other sources out of params.yaml")


@app.command()
def forget(
    sha256: Annotated[
        list[str] | None, typer.Argument(help="of images, or how theirs begin (8 digits at least)")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="images whose origin matches, `*` and `?` as in file names")
    ] = None,
    source: Annotated[str | None, typer.Option(help="of this source only")] = None,
    reason: Annotated[str, typer.Option(help="is logged")] = "",
) -> None:
    """Remove images for good: from the shards, the arrays and the index, and from every later version of the data."""
    from components.ingest import forget as removal
    from components.preprocess import forget as arrays
    from flows import commands, locks, versions

    with locks.only_run(Path("artifacts")):
        commands.mend()
        removed = removal.forget(Path("data"), Path("artifacts/ingest"), sha256 or [], origin, source, reason)
        arrays.forget(Path("data"), Path("artifacts/arrays"), Path("artifacts/index.parquet"), removed)
        versions.version()
    print(
        f"{removed.images:,} images removed; data/forgotten.json names them, and they don't come back. Earlier "
        "versions of the data still hold them: `dvc gc --workspace` (and `--cloud`) removes what no version in use "
        "needs; where other folders share the cache, `--projects` names them, or theirs goes too"
    )
    print(VERSIONED)


@app.command()
def run() -> None:
    """The retraining flow, now."""
    from components.params import load

    candidates = list(load().train.candidates)
    _prepare_flow()
    from flows import retrain

    with _going_on_later():
        state = retrain.retrain(return_state=True)
    if not state.is_completed():
        fail(state.message or "the flow failed")
    print(f"\n{state.message}\n")
    _after_run(candidates)


@app.command()
def monitor(
    retrain: Annotated[bool, typer.Option("--retrain", help="run the retraining here, if there is a reason")] = False,
) -> None:
    """What the last predictions say, and a retraining if they ask for it."""
    _prepare_flow()
    from flows import monitor as monitoring

    state = monitoring.monitor(here=retrain, return_state=True)
    if not state.is_completed():
        fail(state.message or "the flow failed")
    report = read_json(monitoring.FOLDER / "report.json")
    if report["drift"]:
        table = Table("", "stability index", "training", "now", "")
        for s in report["drift"]:
            table.add_row(s["name"], f"{s['psi']:.3f}", s["before"], s["now"], "[red]drift[/]" if s["drifted"] else "")
        console.print(table)
    for problem in report["problems"]:
        print(f"{problem['check']}: {problem['message']}")
    for note in report["notes"]:
        print(note)
    print(f"{report['status']}; {state.message}\nreport: {(monitoring.FOLDER / 'report.html').resolve().as_uri()}")


@app.command()
def tune(
    model: str,
    trials: Annotated[int | None, typer.Option(min=1, help="instead of tune.trials")] = None,
    apply: Annotated[bool, typer.Option(help="put the best settings into params.yaml")] = False,
) -> None:
    """Search for a candidate's settings; a search that was stopped goes on."""
    from components.params import load

    candidates = load().train.models
    if model not in candidates:
        raise StageError(f"train.models has no {model!r}; it has {', '.join(candidates)}")
    _prepare_flow()
    from flows import tune as tuning

    with _going_on_later():
        state = tuning.tune(model, trials, apply, return_state=True)
    if not state.is_completed():
        fail(state.message or "the flow failed")
    folder = tuning.FOLDER / model
    best = read_json(folder / "best.json")
    print(f"\nvalidation loss {best['val_loss']:.4f} with")
    for key, value in best["values"].items():
        print(f"  {key}: {value}")
    print(f"{state.message}\ntrials: {folder / 'trials.csv'}, {(folder / 'history.png').resolve().as_uri()}")


@app.command()
def schedule(
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the Prefect server, where none is set")] = 4200,
    pool: Annotated[
        list[str] | None, typer.Option(help="whose runs are done on this machine; without it all of prefect.yaml's")
    ] = None,
) -> None:
    """What prefect.yaml says, when it says so: pools, deployments, workers, and a Prefect server where none is set."""
    from flows import schedule as schedules

    schedules.run(port, pool or [], console.print)


@app.command()
def generalise(
    model: Annotated[str, typer.Argument(help="a key of train.models")],
    by: Annotated[Literal["generator", "source"], typer.Option(help="what is left out, one after the other")] = (
        "generator"
    ),
) -> None:
    """How a model does on what it never saw: trained without each generator or source, tested on it."""
    _prepare_flow()
    from flows import generalisation

    with _going_on_later():
        state = generalisation.generalise(model, by, return_state=True)
    if not state.is_completed():
        fail(state.message or "the flow failed")
    found = read_json(generalisation.ROOT / model / "table.json")[by]
    table = Table(by, "ai", "real", "balanced accuracy", "95 % interval", "trained with it", "AUROC")
    for row in found["rows"]:
        seen = "–" if row["seen"] is None else f"{row['seen']:.4f}"
        low, high = row["interval"]
        scores = [f"{row['balanced_accuracy']:.4f}", f"{low:.4f} to {high:.4f}", seen, f"{row['auroc']:.4f}"]
        table.add_row(row["group"], f"{row['ai']:,}", f"{row['real']:,}", *scores)
    console.print(table)
    for group, reason in found["skipped"].items():
        print(f"{group}: {reason}")
    print(f"mean balanced accuracy on what it never saw: {found['mean']:.4f}")
    print(f"report: {(generalisation.ROOT / model / 'table.html').resolve().as_uri()}")


@app.command()
def check(
    paths: Annotated[list[str], typer.Argument(help="files, folders, http(s) addresses, or - for a list on stdin")],
    csv: Annotated[Path | None, typer.Option(help="write a table here")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write a list of objects here")] = None,
    parquet: Annotated[Path | None, typer.Option(help="write a table here")] = None,
    heatmap: Annotated[
        Path | None, typer.Option(help="draw here where in each picture the evidence lies: red for ai, blue for real")
    ] = None,
    version: Annotated[str | None, typer.Option(help=_ALONE)] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="in place of the fitted one; the uncertain band moves along")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes, each with the network in memory")] = 1,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 for an uncertain verdict, too")] = False,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="of the reference detectors, ask the small ones: faster, less often right"),
    ] = False,
) -> None:
    """Verdicts for files and folders: by the champion where it was judged on such pictures, else, and while there is no
    champion, by the reference detector that was. Each verdict says whose it is.

    With an output file, a check that was stopped goes on where it was, and files that haven't changed keep their rows.
    Exit codes: 0 nothing is ai, 1 something is, 2 something couldn't be judged.
    """
    from flows import answering, checking

    outputs = {".csv": csv, ".json": json_, ".parquet": parquet}
    for suffix, path in outputs.items():
        if path and path.suffix != suffix:
            fail(f"{path}: its name has to end in {suffix}", checking.ERROR)
    wanted = checking.Wanted(
        [_from_start(path) for path in outputs.values() if path],
        _from_start(heatmap) if heatmap else None,
        threshold,
        jobs,
        strict,
    )
    with one_line(checking.ERROR):
        code = checking.run(paths, _from_start, answering.Who.of(version, fast=fast), wanted)
    raise SystemExit(code)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
    host: str = "127.0.0.1",
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes that answer; else as `serve.workers` says")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="move to each new champion, without a failed request")
    ] = False,
) -> None:
    """The champion over HTTP, with limits, keys, uploads and metrics."""
    from components.params import load
    from flows import serving

    settings = load()
    name = settings.register_.model
    n = workers or settings.serve.workers
    serving.serve(name, settings.serve, settings.monitor, host, port, n, follow=follow)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="0.0.0.0 opens it to others")] = "127.0.0.1",
    version: Annotated[str | None, typer.Option(help=_ALONE)] = None,
    feedback: Annotated[
        Path | None, typer.Option(help="folder for corrections; on 127.0.0.1 feedback/, else none unless named")
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="of a picture's file")] = 40,
) -> None:
    """The web page, with the champion and, for what it wasn't judged on, the reference detectors."""
    from components.serve.page import Limits
    from flows import ui as page

    folder = _from_start(feedback) if feedback else None
    page.serve(version, host, port, folder, Limits(max_bytes=max_mb * 2**20))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="new or empty")],
    format_: Annotated[
        Literal["onnx", "litert", "browser", "space"],
        typer.Option("--format", help="browser: a static page; space: a Hugging Face Space"),
    ] = "onnx",
    version: Annotated[str | None, typer.Option(help="another version than the champion")] = None,
) -> None:
    """The champion, or the reference detector while there is none, for other programs."""
    from components.serve import export as exports
    from flows import answering

    number = answering.version(version)
    target = _from_start(folder)
    with answering.found(number, networks=format_ == "litert", fast=format_ == "browser") as files:
        written = exports.export(files, number, format_, target)
    size = sum(path.stat().st_size for path in written) / 2**20
    print(f"{target}: {answering.name(number)}, {len(written)} files, {size:.1f} MiB")


@app.command()
def review(
    decision: Annotated[
        Literal["accept", "relabel", "reject", "reopen"] | None,
        typer.Argument(help="relabel accepts with the other label, reopen puts a report back; lists them if left out"),
    ] = None,
    reports: Annotated[list[str] | None, typer.Argument(help="their names, or how these begin")] = None,
    feedback: Annotated[Path, typer.Option(help="folder of corrections")] = Path("feedback"),
    remark: Annotated[str, typer.Option(help="is kept with the decision")] = "",
) -> None:
    """The corrections that wait for a decision; only accepted ones become data."""
    from flows import reviewing

    folder = _from_start(feedback)
    if decision:
        for name in reports or []:
            print(reviewing.decide(folder, name, decision, remark))
        return
    rows = reviewing.waiting(folder)
    if not rows:
        print(f"no report waits in {folder}/")
        return
    table = Table("report", "when (UTC)", "said to be", "verdict", "p(ai)", "version", "note", "picture")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    waiting = "1 report waits" if len(rows) == 1 else f"{len(rows):,} reports wait"
    print(f"{waiting}; `trueframe review accept REPORT`, or `relabel` or `reject`, decides")


@app.command()
def models(history: Annotated[bool, typer.Option(help="who was the champion when, and why")] = False) -> None:
    """Versions, aliases, scores, and what the gate said."""
    from datetime import datetime

    registry = _registry()
    events, versions = registry.history(), registry.versions()
    if not versions:
        raise StageError("no version is registered yet; `trueframe run` trains one")
    if history:
        table = Table("when (UTC)", "champion", "how", "by", "reason")
        for e in events:
            table.add_row(e.at[:19].replace("T", " "), e.version, e.how, e.by, e.reason)
        console.print(table)
        return
    columns = ("version", "aliases", "candidate", "balanced accuracy", "AUROC", "test images", "gate", "data")
    table = Table(*columns, "registered")
    for v in versions:
        created = datetime.fromtimestamp(v.created / 1000).strftime("%Y-%m-%d %H:%M")
        scores = [v.tags.get(k, "–") for k in ("balanced_accuracy", "auroc", "test_images")]
        failed = v.tags.get("gate_failed")
        gate = f"failed: {failed}" if failed else v.tags.get("gate", "–")
        data = v.tags.get("data_md5", "–")[:8]
        table.add_row(v.number, ", ".join(v.aliases), v.tags.get("candidate", "–"), *scores, gate, data, created)
    console.print(table)


@app.command()
def promote(
    version: str,
    force: Annotated[bool, typer.Option(help="although it fails a rule of the gate; needs a reason")] = False,
    reason: Annotated[str, typer.Option(help="is kept in the registry")] = "",
) -> None:
    """Make a version the champion."""
    registry = _registry()
    registry.promote(version, force=force, reason=reason)
    print(f"{registry.name} version {version} is the champion")


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="is kept in the registry")] = "") -> None:
    """Make the champion before this one the champion again."""
    registry = _registry()
    print(f"{registry.name} version {registry.rollback(reason)} is the champion again")


@app.command()
def reproduce(version: str) -> None:
    """Make a version again from its recorded code, data and settings, elsewhere, and compare the scores."""
    from flows import reproduce as reproduction

    _end_in_order()
    rows = reproduction.reproduce(_registry(), version)
    table = Table("", "recorded", "reproduced", "difference", "95 % interval", "")
    for row in rows:
        low, high = row.interval
        figures = [f"{row.recorded:.4f}", f"{row.reproduced:.4f}", f"{row.reproduced - row.recorded:+.4f}"]
        table.add_row(row.name, *figures, f"{low:.4f} to {high:.4f}", "within" if row.within else "[red]outside[/]")
    console.print(table)
    if not all(row.within for row in rows):
        raise StageError(f"version {version} was not reproduced: a score lies outside of its interval")


@app.command()
def doctor() -> None:
    """What works here and what doesn't."""
    from flows import doctor as examination

    healthy = True
    table = Table("", "what", "finding")
    for finding in examination.examine():
        healthy &= finding.ok
        table.add_row("[green]ok[/]" if finding.ok else "[red]no[/]", finding.what, escape(finding.text))
    console.print(table)
    if not healthy:
        raise SystemExit(1)


Image = Annotated[str | None, typer.Option(help="of the containers, instead of kubeflow.image")]
Root = Annotated[str | None, typer.Option(help="s3://BUCKET/PREFIX, instead of kubeflow.root")]


@kubeflow.command(name="compile")
def compile_pipeline(
    out: Annotated[Path, typer.Option(help="file to write")] = Path("pipeline.yaml"),
    image: Image = None,
    root: Root = None,
) -> None:
    """Write the pipeline for the settings of this folder."""
    from flows import kubeflow as pipelines

    target = _from_start(out)
    print(f"{target}: {pipelines.compile_to(target, _kubeflow(image, root))} stages")


@kubeflow.command()
def submit(
    host: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="address of Kubeflow Pipelines")
    ] = None,
    image: Image = None,
    root: Root = None,
) -> None:
    """Run the pipeline now."""
    from flows import kubeflow as pipelines

    print(f"run {pipelines.submit(host, _kubeflow(image, root))}")


@kubeflow.command()
def push(root: Root = None) -> None:
    """Let the next run of the pipeline begin with the data of this folder."""
    from flows import kubeflow as pipelines

    print(pipelines.push(_kubeflow(None, root)))


def _kubeflow(image: str | None, root: str | None) -> Any:
    """The section of the settings, with what the command said."""
    from components.params import load

    said = {"image": image, "root": root}
    return load().kubeflow.model_copy(update={key: value for key, value in said.items() if value})


def main() -> None:
    """The entry point: from the project's folder, with one line for every failure that a person can act on."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # it would look for some in every package that is installed
    with one_line():
        os.chdir(_root())
        _own_environment()
        app()


def _own_environment() -> None:
    """See that this program and its Python are of one virtual environment, which those of a copied folder aren't."""
    environment = (START / sys.argv[0]).parent.parent
    if (environment / "pyvenv.cfg").exists() and not environment.samefile(sys.prefix):
        raise StageError(
            f"{environment} is a copy of {sys.prefix}, and would run the code there; `make .venv/.ready` makes it anew"
        )


def _root() -> Path:
    """The folder with params.yaml and dvc.yaml at or above this one; this one if there is none."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "dvc.yaml").exists()), here)


def _from_start(path: Path) -> Path:
    return path if Path.cwd() == START else START / path


def _place(where: str) -> str:
    """A source's place with its path, if it has one, as it is known from the project's folder."""
    scheme, colon, rest = where.partition(":")
    if colon and scheme in ("web", "feedback") and "://" not in where:
        return f"{scheme}:{_kept(rest)}"
    return where if "://" in where else _kept(where)


def _kept(where: str) -> str:
    """A path that settings keep: absolute, or relative if it is in the project's folder, which may be moved."""
    path = _from_start(Path(where).expanduser()).resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _prepare_flow() -> None:
    """See that there is a Prefect server, and let this process end in order when it is told to."""
    from flows import server

    _end_in_order()
    server.at_hand()


@contextmanager
def _going_on_later() -> Iterator[None]:
    """Whoever stops a flow is told what that means, after Prefect's lines."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def _end_in_order() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _registry() -> Any:
    from components.params import load
    from components.register.registry import Registry

    return Registry(load().register_.model)


def _after_run(candidates: list[str]) -> None:
    """The scores, where the reports are, and what to do next."""
    registration = read_json(Path("artifacts/registration.json"))
    table = Table("candidate", "balanced accuracy", "95 % interval", "AUROC", "test images")
    for name in candidates:
        scores = read_json(Path("artifacts/evaluation") / name / "metrics.json")
        low, high = scores["intervals"]["balanced_accuracy"]
        cells = [f"{scores['balanced_accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{scores['auroc']:.4f}"]
        table.add_row(name, *cells, f"{scores['n']:,}")
    console.print(table)
    for reason in registration["reasons"]:
        print(reason)
    name, champion = registration["model_name"], registration["aliases"]["champion"]
    print(f"champion: {name} version {champion}" if champion else "champion: none")
    reported = registration["candidate"] or candidates[0]
    print(f"report:   {Path('artifacts/evaluation', reported, 'report.html').resolve().as_uri()}")
    print(f"data:     {Path('artifacts/validation/report.html').resolve().as_uri()}")
    bin_ = Path(sys.executable).parent
    shown = bin_.relative_to(Path.cwd()) if bin_.is_relative_to(Path.cwd()) else bin_
    print(
        f"next:     {shown}/trueframe check PICTURE\n"
        + (f"          {shown}/trueframe serve\n" if champion else "")
        + f"          {shown}/mlflow ui --port 5000"
    )


if __name__ == "__main__":
    main()
