"""The same bytes whenever a figure is drawn, whatever was set before; every system its colour."""

import re
import sys
import types

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from figures import results, style


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

    figure, axes = style.subplots(width_in=style.COLUMN_WIDTH_IN)
    sns.lineplot(
        table,
        x="capacity_gb",
        y="hits",
        hue="system",
        palette=style.SYSTEM_COLORS,
        seed=0,
        n_boot=50,
        ax=axes,
    )
    style.paper_mark(axes, y=0.5)
    axes.set(xlabel="Capacity (GB)", ylabel="Token hit rate (%)")
    return figure


def plot_without_help(table):
    figure, axes = plt.subplots()
    axes.plot(table["capacity_gb"], table["hits"])
    plt.close(figure)
    return figure


@pytest.fixture
def registry(root, monkeypatch):
    """One part with one module with one figure, `hits`, of table 11_hits."""
    (root / "figures" / "marconi").mkdir(parents=True)
    (root / "figures" / "marconi" / "policies_under_test.py").touch()
    module = types.ModuleType("figures.marconi.policies_under_test")
    module.FIGURES = {"hits": style.Picture("11_hits", plot, "Hit rates.", "95 % of resampled means")}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.FIGURES


def test_a_figure_drawn_twice_has_the_same_bytes(tmp_path, fresh_style):
    first = style.save(plot(trials()), tmp_path / "first" / "hits")
    second = style.save(plot(trials()), tmp_path / "second" / "hits")
    assert [file.name for file in first] == ["hits.svg", "hits.png"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert not re.search(rb"<dc:date|<dc:creator", first[0].read_bytes())


def test_another_table_gives_other_bytes(tmp_path, fresh_style):
    first, second = (style.save(plot(trials(seed)), tmp_path / str(seed) / "hits")[0].read_bytes() for seed in (0, 1))
    assert first != second


def test_settings_of_the_reader_do_not_change_a_committed_figure(root, registry, fresh_style):
    registry["plain"] = style.Picture("11_hits", plot_without_help, "Plain.")
    results.save(trials(), "11_hits", profile="reference", parameters={}, seed=0, seconds=0)
    expected = [file.read_bytes() for file in style.redraw_all(root / "expected")]
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
    assert [file.read_bytes() for file in style.redraw_all(root / "again")] == expected
    assert plt.rcParams["xtick.direction"] == "in"  # and the reader keeps them


def test_figures_go_to_the_committed_directory(root, registry):
    results.save(trials(), "11_hits", profile="reference", parameters={}, seed=0, seconds=0)
    assert style.redraw_all() == [root / "figures" / "marconi" / f"hits.{suffix}" for suffix in ("svg", "png")]


def test_a_missing_table_is_named_after_the_other_figures_are_drawn(root, registry):
    registry["absent"] = style.Picture("19_absent", plot, "Absent.")
    registry["hits"] = registry.pop("hits")
    results.save(trials(), "11_hits", profile="reference", parameters={}, seed=0, seconds=0)
    with pytest.raises(ValueError, match=r"missing: .*19_absent \(for absent\)"):
        style.redraw_all()
    assert (root / "figures" / "marconi" / "hits.svg").exists()


def test_two_modules_may_not_draw_a_figure_of_one_name(root, registry, monkeypatch):
    (root / "figures" / "marconi" / "again_under_test.py").touch()
    again = types.ModuleType("figures.marconi.again_under_test")
    again.FIGURES = registry
    monkeypatch.setitem(sys.modules, again.__name__, again)
    with pytest.raises(ValueError, match="name must be unique, got hits twice"):
        style.registered()


def test_a_caption_says_what_on_which_data_from_how_many_rows_and_with_which_interval(registry):
    table = trials().assign(trace=["sharegpt", "sgd"] * 20)
    assert registry["hits"].caption(table) == (
        "Hit rates. Data: sharegpt, sgd. n = 40 rows. Interval: 95 % of resampled means."
    )
    assert style.Picture("11_hits", plot, "Hit rates.").caption(trials()) == "Hit rates. n = 40 rows."


def test_a_caption_is_the_plots_docstring_unless_it_says_otherwise():
    def documented(table):
        """Hit rates
        of all systems.

        Not shown: errors.
        """

    assert style.Picture("11_hits", documented).sentence == "Hit rates of all systems."
    assert style.Picture("11_hits", documented, "Hits.").sentence == "Hits."


def test_a_notebook_shows_the_figure_and_its_caption(registry, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    style.show(registry["hits"], trials())
    assert isinstance(shown[0], matplotlib.figure.Figure)
    assert shown[1].data == f"*{registry['hits'].caption(trials())}*"


def test_facets_take_the_systems_colours_and_close_their_figure(fresh_style):
    import seaborn as sns

    before = plt.get_fignums()
    grid = style.facets(sns.relplot, trials(), kind="line", x="capacity_gb", y="hits", hue="system", height_in=2)
    assert plt.get_fignums() == before
    assert grid.figure.get_size_inches().tolist() == [7.0, 2.0]
    colors = {matplotlib.colors.to_hex(line.get_color()).upper() for line in grid.ax.lines if len(line.get_xdata())}
    assert colors == {style.SYSTEM_COLORS["Marconi"], style.SYSTEM_COLORS["SGLang+"]}


def test_a_figure_that_fails_leaves_the_last_one(tmp_path, monkeypatch, fresh_style):
    svg, png = style.save(plot(trials()), tmp_path / "hits")
    before = svg.read_bytes(), png.read_bytes()
    figure = plot(trials(1))
    monkeypatch.setattr(figure, "savefig", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        style.save(figure, tmp_path / "hits")
    assert (svg.read_bytes(), png.read_bytes()) == before
    assert sorted(tmp_path.iterdir()) == [png, svg]


def test_each_system_of_one_paper_has_a_colour_of_its_own():
    colors = list(style.SYSTEM_COLORS.values())
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in colors)
    marconi = list(style.SYSTEM_COLORS)[:8]
    assert len({style.SYSTEM_COLORS[system] for system in marconi}) == len(marconi)


def test_subplots_leaves_no_figure_open(fresh_style):
    before = plt.get_fignums()
    style.subplots(2, 2)
    assert plt.get_fignums() == before


def test_the_papers_value_is_a_line_or_a_diamond(fresh_style):
    _, axes = style.subplots()
    style.paper_mark(axes, x=1)
    style.paper_mark(axes, y=1)
    style.paper_mark(axes, x=1, y=1)
    assert [line.get_marker() for line in axes.lines] == ["None", "None", "D"]
    with pytest.raises(ValueError, match="needs x, y or both"):
        style.paper_mark(axes)
