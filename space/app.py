"""A Hugging Face Space: the web page, with the detectors that lie in models/."""

import os
from pathlib import Path

from components.serve import files, page, reference
from components.serve.page.about import About
from flows import links, ui

VERSION = (reference.FOLDER / "version").read_text().strip()
FEEDBACK = os.environ.get("TRUEFRAME_FEEDBACK")  # a folder; persistent storage is /data


def main() -> None:
    """Serve the page where a Space is looked for."""
    kept = files.references()
    is_reference = VERSION == reference.VERSION
    detector = reference.Reference() if is_reference else kept[0].detector(VERSION)
    ui.warm(detector)
    about = About.of("the reference detector" if is_reference else f"version {VERSION} of the detector", kept, detector)
    folder = Path(FEEDBACK) if FEEDBACK else None
    app = page.build(lambda: about, links.fetch, feedback=folder, reviewers=ui.reviewers() if folder else None)
    host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    print(f"the page is ready on port {port}", flush=True)
    ui.run(app, host, port)


if __name__ == "__main__":
    main()
