"""A Hugging Face Space: the web page, with the detectors that lie in models/."""

import os
from pathlib import Path

from components.serve import page, reference
from components.serve.page.about import About
from flows import links, ui

VERSION = (reference.FOLDER / "version").read_text().strip()
FEEDBACK = os.environ.get("TRUEFRAME_FEEDBACK")  # a folder; persistent storage is /data


def main() -> None:
    """Serve the page where a Space is looked for."""
    kept = reference.references()
    title = reference.title(VERSION)
    if title:
        about = About.of(title, None, kept)
    else:
        own = kept[0].files
        about = About.of(f"version {VERSION} of the detector", (own, own.load(VERSION)))
    ui.warm(about.detector)
    folder = Path(FEEDBACK) if FEEDBACK else None
    app = page.build(lambda: about, links.fetch, feedback=folder, reviewers=ui.reviewers() if folder else None)
    host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    print(f"the page is ready on port {port}", flush=True)
    ui.run(app, host, port)


if __name__ == "__main__":
    main()
