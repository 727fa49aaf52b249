"""Runs the notebooks' code, without a kernel, and keeps their figures.

python notebooks/run.py [--run runs/digits/switch_kd] [--figures docs/gallery] [01_three_pathways ...]
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
mpl.use("Agg")


def run(notebook: Path, figures: Path | None = None) -> list[Any]:
    """Runs a notebook's cells in order, in a namespace of their own.

    Args:
        notebook: file.
        figures: folder for the figures that cells end with, ``NAME-1.png``, ``NAME-2.png``, …

    Returns:
        what each code cell ends with.
    """
    from matplotlib.figure import Figure

    space: dict[str, Any] = {"__name__": "notebook"}
    warnings.filterwarnings("always", module="notebook")
    shown: list[Any] = []
    drawn = 0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), notebook.name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, notebook.name, "exec"), space)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), notebook.name, "eval"), space))
            if isinstance(shown[-1], Figure):
                drawn += 1
                if figures is not None:
                    figures.mkdir(parents=True, exist_ok=True)
                    shown[-1].savefig(figures / f"{notebook.stem}-{drawn}.png", dpi=90, bbox_inches="tight")
    return shown


def main() -> None:
    """Runs those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks, without their ending")
    parser.add_argument("--run", help="run folder that they look at")
    parser.add_argument("--figures", type=Path, help="folder for their figures")
    options = parser.parse_args()
    if options.run:
        os.environ["RUN"] = options.run
    for notebook in sorted(HERE.glob("*.ipynb")):
        if not options.names or notebook.stem in options.names:
            start = time.perf_counter()
            run(notebook, options.figures and options.figures.resolve())
            print(f"{notebook.stem}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
