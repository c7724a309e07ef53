"""A stranger adds a figure with its claim by touching three files: a notebook, a module of figures/, claims.toml."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from figures import paths

MODULE = '''"""How many elements two workers share, by density: an evaluation that somebody else adds."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from figures.claims import paper
from figures.style import Picture, facets, paper_mark


def shared(*, densities: list[float], size: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Expected and drawn share of elements that two random workers both have. One row per density."""
    rng = np.random.default_rng(seed)
    rows = []
    for density in densities:
        first, second = (rng.random(size) < density for _ in range(2))
        rows.append({"density": density, "system": "Zen", "shared": float((first & second).mean())})
    return pd.DataFrame(rows)


def plot_shared(table: pd.DataFrame) -> Figure:
    """Shared elements against density."""
    grid = facets(sns.relplot, table, kind="line", x="density", y="shared", hue="system")
    paper_mark(grid.ax, x=0.5, y=paper("zen-one-more"))
    return grid.figure


FIGURES = {"zen-one-more": Picture("60_one_more", plot_shared, "Elements that two random workers share.")}
'''
CELLS = [
    'profile = "quick"\ndensities = [0.1, 0.5]',
    "from figures import claims, results, style\nfrom figures.zen import one_more",
    'table = results.run("60_one_more", one_more.shared, profile=profile, densities=densities)',
    'style.show(one_more.FIGURES["zen-one-more"], table)',
    'claims.scorecard(profile, notebook="60_one_more")',
]
CLAIM = """
[60_one_more]
evidence = "simulated"

[60_one_more.zen-one-more]
figure = "beyond the paper"
sentence = "Two workers of density 0.5 share a quarter of the elements."
paper = 0.25
value = { how = "only", of = "shared", where = { density = 0.5 } }
reproduced = { absolute = 0.02 }
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, with the three files."""
    root = tmp_path_factory.mktemp("stranger") / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.svg", "*.png", ".ipynb_checkpoints")
    for part in ("artifact", "figures", "notebooks", "data"):
        shutil.copytree(paths.ROOT / part, root / part, ignore=ignored)
    (root / "figures" / "zen" / "one_more.py").write_text(MODULE)
    parameters = new_code_cell(CELLS[0], metadata={"tags": ["parameters"]})
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, CELLS[1:])], metadata={"kernelspec": spec})
    nbformat.write(notebook, root / "notebooks" / "60_one_more.ipynb")
    (root / "claims.toml").write_text((paths.ROOT / "claims.toml").read_text(encoding="utf-8") + CLAIM)
    return root


def run(checkout, *command):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_more_figure_takes_three_files(checkout):
    run(checkout, "-m", "artifact", "run", "60_one_more")
    executed = nbformat.read(checkout / "results" / "quick" / "60_one_more.ipynb", as_version=4)
    shown = [output.data for cell in executed.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in data for data in shown), "the figure"
    assert any("two random workers share. n = 2 rows" in data.get("text/markdown", "") for data in shown), "its caption"
    assert any("reproduced" in data.get("text/plain", "") for data in shown), "its claim"
    assert "zen-one-more" in run(checkout, "-m", "artifact", "scorecard", "--profile", "quick")


def test_its_picture_is_drawn_beside_its_module_and_its_claim_is_on_the_page(checkout):
    run(checkout, "-m", "artifact", "run", "60_one_more", "--profile", "full")
    (checkout / "results" / "full").rename(checkout / "results" / "reference")
    program = """
from figures import claims, results, style
part, picture = style.registered()["zen-one-more"]
style.save(picture.plot(results.load(picture.table)), style.paths.figures() / part / "zen-one-more")
print(claims.page())
"""
    page = run(checkout, "-c", program)
    row = next(line for line in page.splitlines() if line.startswith("| `zen-one-more`"))
    assert "| 0.25 |" in row and "| reproduced | simulated | [60_one_more](notebooks/60_one_more.ipynb) |" in row
    assert (checkout / "figures" / "zen" / "zen-one-more.svg").exists()


def test_other_parameters_than_the_profiles_are_not_judged(checkout):
    program = """
from figures import claims, results
from figures.zen import one_more
results.run("60_one_more", one_more.shared, profile="quick", densities=[0.5], size=100_000)
print(claims.check("zen-one-more", "quick").state)
"""
    assert run(checkout, "-c", program).strip() == "other parameters"
