"""The same bytes whenever a figure is drawn, whatever was set before; every system its colour."""

import re
import types

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from artifact import systems
from figures import results
from figures import style as figures


@pytest.fixture
def fresh_style():
    with matplotlib.rc_context():
        yield


def trials(seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "system": ["Marconi", "SGLang+"] * 20,
            "capacity_gb": np.repeat([1, 2, 3, 4], 10),
            "hits": rng.random(40),
        }
    )


def plot(table):
    import seaborn as sns

    figure, axes = figures.subplots(width_in=figures.COLUMN_WIDTH_IN)
    sns.lineplot(
        table,
        x="capacity_gb",
        y="hits",
        hue="system",
        palette=figures.SYSTEM_COLORS,
        seed=0,
        n_boot=50,
        ax=axes,
    )
    figures.paper_mark(axes, y=0.5)
    axes.set(xlabel="Capacity (GB)", ylabel="Token hit rate (%)")
    return figure


def plot_without_help(table):
    figure, axes = plt.subplots()
    axes.plot(table["capacity_gb"], table["hits"])
    plt.close(figure)
    return figure


@pytest.fixture
def registry(monkeypatch):
    """One system with one figure, `hits`, of table 11_hits."""
    plots = types.SimpleNamespace(FIGURES={"hits": ("11_hits", plot)})
    monkeypatch.setattr(systems, "commands", lambda: iter([plots]))
    return plots.FIGURES


def test_a_figure_drawn_twice_has_the_same_bytes(tmp_path, fresh_style):
    first = figures.save(plot(trials()), "hits", tmp_path / "first")
    second = figures.save(plot(trials()), "hits", tmp_path / "second")
    assert [file.name for file in first] == ["hits.svg", "hits.png"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert not re.search(rb"<dc:date|<dc:creator", first[0].read_bytes())


def test_another_table_gives_other_bytes(tmp_path, fresh_style):
    first, second = (figures.save(plot(trials(seed)), "hits", tmp_path / str(seed))[0].read_bytes() for seed in (0, 1))
    assert first != second


def test_settings_of_the_reader_do_not_change_a_committed_figure(root, registry, fresh_style):
    registry["plain"] = ("11_hits", plot_without_help)
    results.save(trials(), "11_hits", profile="reference", parameters={}, seed=0, seconds=0)
    expected = [file.read_bytes() for file in figures.redraw_all(root / "expected")]
    plt.rcParams.update(
        {
            "font.size": 20,
            "axes.facecolor": "#eeeeee",
            "axes.grid": False,
            "lines.linestyle": ":",
            "grid.color": "b",
        }
    )
    plt.rcParams["xtick.direction"] = "in"
    assert [file.read_bytes() for file in figures.redraw_all(root / "again")] == expected
    assert plt.rcParams["xtick.direction"] == "in"  # and the reader keeps them


def test_figures_go_to_the_committed_directory(root, registry):
    results.save(trials(), "11_hits", profile="reference", parameters={}, seed=0, seconds=0)
    assert figures.redraw_all() == [root / "figures" / "hits.svg", root / "figures" / "hits.png"]


def test_a_missing_table_is_named_after_the_other_figures_are_drawn(root, registry):
    registry["absent"] = ("19_absent", plot)
    registry["hits"] = registry.pop("hits")
    results.save(trials(), "11_hits", profile="reference", parameters={}, seed=0, seconds=0)
    with pytest.raises(ValueError, match=r"missing: .*19_absent \(for absent\)"):
        figures.redraw_all()
    assert (root / "figures" / "hits.svg").exists()


def test_two_systems_may_not_draw_a_figure_of_one_name(monkeypatch):
    plots = types.SimpleNamespace(FIGURES={"hits": ("11_hits", plot)})
    monkeypatch.setattr(systems, "commands", lambda: iter([plots, plots]))
    with pytest.raises(ValueError, match="name must be unique, got hits twice"):
        figures.registered()


def test_a_figure_that_fails_leaves_the_last_one(tmp_path, monkeypatch, fresh_style):
    svg, png = figures.save(plot(trials()), "hits", tmp_path)
    before = svg.read_bytes(), png.read_bytes()
    figure = plot(trials(1))
    monkeypatch.setattr(figure, "savefig", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.save(figure, "hits", tmp_path)
    assert (svg.read_bytes(), png.read_bytes()) == before
    assert sorted(tmp_path.iterdir()) == [png, svg]


def test_each_system_of_one_paper_has_a_colour_of_its_own():
    colors = list(figures.SYSTEM_COLORS.values())
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in colors)
    marconi = list(figures.SYSTEM_COLORS)[:8]
    assert len({figures.SYSTEM_COLORS[system] for system in marconi}) == len(marconi)


def test_subplots_leaves_no_figure_open(fresh_style):
    before = plt.get_fignums()
    figures.subplots(2, 2)
    assert plt.get_fignums() == before


def test_the_papers_value_is_a_line_or_a_diamond(fresh_style):
    _, axes = figures.subplots()
    figures.paper_mark(axes, x=1)
    figures.paper_mark(axes, y=1)
    figures.paper_mark(axes, x=1, y=1)
    assert [line.get_marker() for line in axes.lines] == ["None", "None", "D"]
    with pytest.raises(ValueError, match="needs x, y or both"):
        figures.paper_mark(axes)
