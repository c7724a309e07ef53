"""The committed figures are those that the reference tables give, to the byte."""

import contextlib

import pytest

from figures import paths, results, style

REGISTERED = style.registered()
has_reference = pytest.mark.skipif(
    not list(paths.results("reference").glob("*.parquet")), reason="no reference results are committed yet"
)
each_figure = pytest.mark.parametrize("name", REGISTERED)


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    """A directory with every registered figure, drawn from the reference tables."""
    directory = tmp_path_factory.mktemp("figures")
    with contextlib.suppress(ValueError):  # a table that is missing fails the test of that figure alone
        style.redraw_all(directory)
    return directory


@has_reference
@each_figure
def test_the_table_of_a_figure_is_committed(name):
    _, picture = REGISTERED[name]
    assert results.file(picture.table, "reference").exists()


@has_reference
@each_figure
def test_a_committed_figure_is_what_its_table_gives(redrawn, name):
    part, _ = REGISTERED[name]
    committed = paths.figures() / part / f"{name}.svg"
    assert committed.exists(), "make figures"
    assert (redrawn / part / committed.name).read_bytes() == committed.read_bytes(), "make figures"


@each_figure
def test_a_figure_is_named_after_its_part_and_has_a_caption(name):
    part, picture = REGISTERED[name]
    assert name.startswith(f"{part}-") and picture.sentence.endswith(".")


def test_every_committed_figure_is_registered_and_in_both_formats():
    committed = {f"{file.parent.name}/{file.name}" for file in paths.figures().glob("*/*.[sp][vn]g")}
    assert committed == {
        f"{part}/{name}.{suffix}" for name, (part, _) in REGISTERED.items() for suffix in ("svg", "png")
    }
