"""Execute the notebooks, and save their figures.

python notebooks/run.py [--run runs/emoji/switch_kd] [--figures docs/gallery] [01_three_pathways ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from base64 import b64decode
from pathlib import Path

try:
    import nbformat
    from nbclient import NotebookClient
except ModuleNotFoundError as error:
    print(f"error: the notebooks need {error.name}: pip install -r requirements-dev.txt", file=sys.stderr)
    sys.exit(2)

HERE = Path(__file__).resolve().parent
SETUP = """%matplotlib inline
%config InlineBackend.print_figure_kwargs = {"dpi": 90, "bbox_inches": "tight"}
"""  # inline also where MPLBACKEND names another backend, as on clusters
QUIET = ["--log-level=ERROR"]  # a kernel on this machine warns that its connection is not encrypted


def run(notebook: Path, figures: Path | None = None) -> list[str]:
    """Execute a notebook. Its warnings go to standard error.

    Args:
        notebook: The file. It is not changed.
        figures: Folder for the figures that cells return: ``NAME-1.png``, ``NAME-2.png``, …

    Returns:
        The figures: PNG files in base64.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    document = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    document.cells.insert(0, nbformat.v4.new_code_cell(SETUP))  # type: ignore[no-untyped-call]
    folder = {"metadata": {"path": str(HERE)}}
    NotebookClient(document, timeout=None, resources=folder, extra_arguments=QUIET).execute()
    outputs = [output for cell in document.cells if cell.cell_type == "code" for output in cell.outputs]
    print(*(output.text for output in outputs if output.get("name") == "stderr"), sep="", end="", file=sys.stderr)
    results = [output.data for output in outputs if "data" in output]
    images = [data["image/png"] for data in results if data["text/plain"].startswith("<Figure") and "image/png" in data]
    if figures is not None and images:
        figures.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images, start=1):
            (figures / f"{notebook.stem}-{number}.png").write_bytes(b64decode(image))
    return images


def main() -> None:
    """Execute the named notebooks, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names or paths of notebooks; by default all")
    parser.add_argument("--run", help="run folder that the notebooks open")
    parser.add_argument("--figures", type=Path, help="folder for the figures")
    options = parser.parse_args()
    notebooks = sorted(HERE.glob("*.ipynb"))
    names = {Path(name).name.removesuffix(".ipynb") for name in options.names}
    if unknown := names - {notebook.stem for notebook in notebooks}:
        available = ", ".join(notebook.stem for notebook in notebooks)
        parser.error(f"unknown notebooks: {', '.join(sorted(unknown))}. Available: {available}")
    os.environ["PYTHONPATH"] = str(HERE.parent)  # the kernels import the package from this checkout
    if options.run:
        os.environ["RUN"] = options.run
    for notebook in notebooks:
        if not names or notebook.stem in names:
            start = time.perf_counter()
            run(notebook, options.figures)
            print(f"{notebook.stem}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
