"""The committed figures are those that the reference tables give, to the byte."""

import contextlib

import pytest

from figures import paths, results
from figures import style as figures

REGISTERED = figures.registered()
has_reference = pytest.mark.skipif(
    not list(paths.results("reference").glob("*.parquet")), reason="no reference results are committed yet"
)
each_figure = pytest.mark.parametrize("name", REGISTERED)


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    """A directory with every registered figure, drawn from the reference tables."""
    directory = tmp_path_factory.mktemp("figures")
    with contextlib.suppress(ValueError):  # a table that is missing fails the test of that figure alone
        figures.redraw_all(directory)
    return directory


@has_reference
@each_figure
def test_the_table_of_a_figure_is_committed(name):
    table, _ = REGISTERED[name]
    assert results.file(table, "reference").exists()


@has_reference
@each_figure
def test_a_committed_figure_is_what_its_table_gives(redrawn, name):
    committed = paths.figures() / f"{name}.svg"
    assert committed.exists(), "make figures"
    assert (redrawn / committed.name).read_bytes() == committed.read_bytes(), "make figures"


def test_every_committed_figure_is_registered_and_in_both_formats():
    committed = {file.name for file in paths.figures().glob("*")}
    known = {f"{name}.{suffix}" for name in REGISTERED for suffix in ("svg", "png")}
    assert committed <= known
    assert {file.removesuffix(".svg") for file in committed if file.endswith(".svg")} == {
        file.removesuffix(".png") for file in committed if file.endswith(".png")
    }
