"""States of claims by their rules; wrong entries refused by the claim's name; the page that lists them."""

import math
import sys
import types

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from figures import calls, claims, results
from figures.reducers import Value

TOML = """
[11_hits]
evidence = "simulated"

[11_hits.marconi-fig7]
figure = "figure 7"
sentence = "Hit rate over vLLM+ | block 32."
paper = 7.3
unit = "x"
value = { how = "mean", of = "ratio" }
reproduced = { relative = 0.05 }
direction = { at_least = 1 }
reason = "Another tokenizer."
"""
GPU = """
[13_ttft]
evidence = "measured"

[13_ttft.marconi-fig9]
figure = "figure 9"
sentence = "Time to first token."
needs = "GPU"
reason = "No GPU here."
"""
NOTEBOOKS = {
    "11_hits": [
        'profile = "quick"\nblock_sizes = [16, 32]',
        'seeds = 3\nresults.run("11_hits", hits, profile=profile, blocks=block_sizes, seeds=seeds)',
    ],
    "13_ttft": ['profile = "quick"', '%time\ntable = results.run("13_ttft", ttft, profile=profile)'],
}


@pytest.fixture
def project(root):
    """A project of two claims and the notebooks that make their tables."""
    (root / "claims.toml").write_text(TOML + GPU)
    (root / "notebooks" / "full").mkdir(parents=True)
    (root / "notebooks" / "full" / "11_hits.yaml").write_text("profile: full\nblock_sizes: [8]\n")
    for name, (parameters, code) in NOTEBOOKS.items():
        cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(code)]
        nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")
    return root


@pytest.fixture
def special(project, monkeypatch):
    """The claim's value by a function of figures/ instead of a reducer."""
    module = types.ModuleType("figures.metrics_under_test")
    module.ratio = lambda table: table["ratio"].mean()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = TOML.replace('{ how = "mean", of = "ratio" }', '"metrics_under_test.part:ratio"')
    part = types.ModuleType("figures.metrics_under_test.part")
    part.ratio = module.ratio
    monkeypatch.setitem(sys.modules, part.__name__, part)
    (project / "claims.toml").write_text(text + GPU)
    return part


FULL = {"blocks": [8], "seeds": 3}


def ran(ratio, profile="reference", **changed):
    table = pd.DataFrame({"ratio": [ratio]})
    parameters = {**(FULL if profile != "quick" else {"blocks": [16, 32], "seeds": 3}), **changed}
    results.save(table, "11_hits", profile=profile, parameters=parameters, seed=None, seconds=90)


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (7.33, "reproduced"),
        (7.3 * 1.05, "reproduced"),
        (7.3 * 1.0501, "direction holds"),
        (2.0, "direction holds"),
        (0.99, "differs"),
    ],
)
def test_the_rules_decide_the_state(project, value, state):
    ran(value)
    checked = claims.check("marconi-fig7", "reference")
    assert checked.state == state
    assert checked.value == pytest.approx(value)


def test_without_its_table_a_claim_is_not_run(project):
    assert claims.check("marconi-fig7", "reference") == claims.CheckedClaim(claims.get("marconi-fig7"), None, "not run")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"blocks": [256]}, "made with blocks = [256] (reference: [8])"),
        ({"seeds": 4}, "made with seeds = 4 (reference: 3)"),
        ({"alpha": 2}, "made with alpha = 2 (reference: its default)"),
        ({"blocks": [256], "seeds": 4}, "made with blocks = [256] (reference: [8]), seeds = 4 (reference: 3)"),
    ],
)
def test_a_table_of_other_parameters_is_not_judged(project, changed, reason):
    ran(7.3, **changed)
    checked = claims.check("marconi-fig7", "reference")
    assert (checked.state, checked.value, checked.reason) == ("other parameters", None, reason)
    assert claims.scorecard("reference")["state"].tolist() == ["other parameters", "needs GPU"]


def test_a_parameter_that_is_left_at_its_default_is_the_profiles(project):
    table = pd.DataFrame({"ratio": [7.3]})
    parameters = {**FULL, "alpha": 1.0}
    results.save(table, "11_hits", profile="full", parameters=parameters, seed=0, seconds=1, defaults=["alpha"])
    assert claims.check("marconi-fig7", "full").state == "reproduced"


def test_a_table_that_no_notebook_makes_is_that_claims_error(project):
    (project / "notebooks" / "11_hits.ipynb").unlink()
    ran(7.3)
    checked = claims.check("marconi-fig7", "reference")
    assert checked.state == "error" and "a notebook must make table 11_hits" in checked.reason
    assert claims.scorecard("reference")["notebook"].tolist() == ["", "13_ttft"]


def test_a_profile_that_lacks_the_rows_is_not_run(project):
    ran(math.nan)
    assert claims.check("marconi-fig7", "reference").state == "not run"


def test_a_claim_says_what_it_needs(project):
    assert claims.check("marconi-fig9", "quick").state == "needs GPU"


@pytest.mark.parametrize(
    ("rule", "holds", "fails"),
    [
        ({"relative": 0.1}, (9.0, 11.0), (8.9, 11.1)),
        ({"absolute": 0.5}, (9.5, 10.5), (9.4, 10.6)),
        ({"absolute": 0}, (10.0,), (10.1,)),
        ({"at_least": 2}, (2.0, 3.0), (1.9,)),
        ({"at_most": 2}, (2.0, 1.0), (2.1,)),
        ({"between": [1, 2]}, (1.0, 2.0), (0.9, 2.1)),
    ],
)
def test_each_rule_holds_up_to_its_bound(rule, holds, fails):
    assert all(claims.Rule(**rule).holds(value, paper=10.0) for value in holds)
    assert not any(claims.Rule(**rule).holds(value, paper=10.0) for value in fails)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('unit = "x"', 'units = "x"', "claim marconi-fig7: units: Extra inputs"),
        ("relative = 0.05", "relativ = 0.05", "claim marconi-fig7: reproduced.relativ: Extra inputs"),
        ("{ relative = 0.05 }", "{}", "exactly one of relative"),
        ("{ relative = 0.05 }", "{ relative = 0.05, at_least = 1 }", "exactly one of relative"),
        ("{ relative = 0.05 }", "{ between = [2, 1] }", "between must be"),
        ("paper = 7.3", "", "need the paper's value"),
        ('evidence = "simulated"', 'evidence = "guessed"', "claim marconi-fig7: evidence"),
        ('value = { how = "mean", of = "ratio" }', "", "value and reproduced must be given"),
        ('how = "mean"', 'how = "average"', "claim marconi-fig7: value"),
        ('of = "ratio"', 'of = "ratio", over = "b", by = ["a"]', "claim marconi-fig7: value.*by needs over"),
        ('of = "ratio"', 'of = "ratio", group = "all"', "claim marconi-fig7: value.*group needs by"),
        ('of = "ratio"', 'of = "ratio.__class__"', "claim marconi-fig7: value"),
        ('of = "ratio"', 'of = "@pd.read_pickle"', "claim marconi-fig7: value"),
        ('of = "ratio"', 'of = "ratio", where = { a = {} }', "claim marconi-fig7: value"),
        ('{ how = "mean", of = "ratio" }', '"os:system"', "claim marconi-fig7: value"),
        ('sentence = "Hit', 'state = "reproduced"\nsentence = "Hit', "claim marconi-fig7: state: Extra inputs"),
        ('needs = "GPU"', 'needs = "GPU"\nvalue = "a.b:c"', "claim marconi-fig9: .*needs excludes"),
        ("[13_ttft.marconi-fig9]", "[13_ttft.marconi-fig7]", "claim marconi-fig7: id must be unique"),
        ("[13_ttft.marconi-fig9]", '[13_ttft."Figure 9"]', "claim Figure 9: id"),
        ("[11_hits]", "profile = 1\n[11_hits]", "profile must be a table of claims, got 1"),
        ("paper = 7.3", "paper = ", r"claims.toml: .*line 8"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(project, old, new, message):
    text = TOML + GPU
    assert old in text
    (project / "claims.toml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        claims.read()


def test_an_unknown_claim_is_refused(project):
    with pytest.raises(ValueError, match="claim must be one of marconi-fig7, marconi-fig9, got 'fig7'"):
        claims.check("fig7", "quick")


def test_a_value_may_be_a_function_of_the_evaluation(special):
    ran(7.3)
    assert claims.check("marconi-fig7", "reference").state == "reproduced"


def test_a_value_that_names_nothing_is_that_claims_error(special):
    ran(7.3)
    del special.ratio
    checked = claims.check("marconi-fig7", "reference")
    assert checked.state == "error" and "value must name a function of figures/" in checked.reason


@pytest.mark.parametrize("error", [KeyError("no such column"), ZeroDivisionError(), AssertionError("x"), TypeError()])
def test_a_value_that_fails_is_that_claims_error_and_never_the_end_of_the_scorecard(special, error):
    def fails(table):
        raise error

    ran(7.3)
    special.ratio = fails
    card = claims.scorecard("reference").set_index("id")
    assert card["state"].to_dict() == {"marconi-fig7": "error", "marconi-fig9": "needs GPU"}
    assert card["reason"]["marconi-fig7"].startswith(f"{type(error).__name__}:")


def test_a_column_that_the_table_lacks_is_named(project):
    results.save(pd.DataFrame({"b": [1]}), "11_hits", profile="full", parameters=FULL, seed=None, seconds=0)
    checked = claims.check("marconi-fig7", "full")
    assert (checked.state, checked.reason) == ("error", "KeyError: 'ratio'")


ROWS = pd.DataFrame(
    {
        "trace": ["a", "a", "a", "b", "b", "synthetic-a"],
        "system": ["ours", "theirs", "theirs", "ours", "theirs", "ours"],
        "capacity": [1, 1, 2, 2, 2, 1],
        "hits": [30.0, 10.0, 20.0, 8.0, 4.0, 900.0],
        "requests": [60, 20, 80, 16, 16, 900],
        "good": [True, True, False, True, False, False],
    }
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"how": "mean", "of": "hits"}, 14.4),  # a stand-in for a trace is not the trace
        ({"how": "max", "of": "hits", "where": {"trace": "synthetic-a"}}, 900),
        ({"how": "median", "of": "hits"}, 10),
        ({"how": "min", "of": "hits", "where": {"system": "theirs", "capacity": 2}}, 4),
        ({"how": "sum", "of": "hits", "where": {"trace": ["b"]}}, 12),
        ({"how": "count", "of": "hits", "where": {"hits": {"at_least": 10, "at_most": 20}}}, 2),
        ({"how": "count", "of": "hits", "where": {"hits": {"above": 10}}}, 2),
        ({"how": "count", "of": "hits", "where": {"system": {"but": "ours"}}}, 3),
        ({"how": "count", "of": "hits", "where": {"trace": "c"}}, 0),
        ({"how": "share", "of": "good", "times": 100}, 60),
        ({"how": "p95", "of": "hits"}, 28.0),
        ({"how": "only", "of": "trace", "where": {"system": "ours", "capacity": 7}}, math.nan),
        ({"how": "only", "of": "hits", "where": {"trace": "a", "system": "ours"}}, 30),
        ({"how": "mean", "of": "hits", "over": "requests", "where": {"trace": "a"}}, (0.5 + 0.5 + 0.25) / 3),
        ({"how": "mean", "of": "hits", "where": {"system": "ours"}, "over": {"system": "theirs"}}, 19 / (34 / 3)),
        ({"how": "min", "of": "hits", "where": {"system": "ours"}, "over": {"system": "theirs"}, "by": ["trace"]}, 2.0),
        ({"how": "max", "of": "hits", "where": {"system": "ours"}, "over": {"system": "none"}}, math.nan),
        ({"how": "max", "of": "hits", "less": 1, "times": 100}, 2900),
        ({"how": "furthest", "of": "hits", "less": 10, "times": 100}, 2000),
        ({"how": "sum", "of": "hits", "within": {"below": 10}}, 2),
        ({"how": "share", "of": "hits", "over": "requests", "within": {"at_most": 0.4}}, 0.4),
        ({"how": "sum", "of": "hits", "within": {"below": 10}, "where": {"trace": "c"}}, math.nan),
        ({"how": "min", "of": "hits", "minus": {"system": "theirs"}, "where": {"system": "ours"}, "by": ["trace"]}, 4),
        ({"how": "mean", "of": "hits", "where": {"system": "ours"}, "minus": {"system": "theirs"}}, 19 - 34 / 3),
        ({"how": "max", "of": "abs(hits / requests - 1)"}, 0.75),
        ({"how": "spread", "of": "hits", "where": {"trace": "a"}}, 3),
        (
            {"how": "min", "of": "hits", "minus": {"system": "theirs"}, "over": {"system": "theirs"}}
            | {"where": {"system": "ours"}, "by": ["trace"], "group": "p95"},
            (30 - 19.5) / 19.5,
        ),
        ({"how": "growth", "of": "hits", "where": {"system": "theirs"}}, 0.4),
        ({"how": "growth", "of": "hits", "where": {"system": "ours", "trace": "a"}}, math.nan),
        ({"how": "growth", "of": "hits", "by": ["trace"], "group": "p95"}, 7.8 / 29),
        ({"how": "share", "of": "hits > 8", "group": "all", "by": ["trace"], "times": 100}, 50),
    ],
)
def test_a_value_is_reduced_from_the_rows_it_names(value, expected):
    assert Value(**value)(ROWS) == pytest.approx(expected, nan_ok=True)


def test_only_refuses_several_values():
    with pytest.raises(ValueError, match="hits must have one value in these rows, got 5"):
        Value(how="only", of="hits")(ROWS)


def test_what_a_notebook_passes_is_read_from_its_cells(project):
    assert calls.tables() == {"11_hits": "11_hits", "13_ttft": "13_ttft"}
    assert calls.passed("11_hits", "quick") == {"blocks": [16, 32], "seeds": 3}
    assert calls.passed("11_hits", "full") == calls.passed("11_hits", "reference") == FULL
    assert calls.passed("13_ttft", "full") == {}


def test_what_cannot_be_read_from_a_notebook_is_refused_with_the_call(project):
    cell = new_code_cell('results.run("12_more", more, profile=profile, sizes=[n**2 for n in range(3)])')
    parameters = new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[parameters, cell]), project / "notebooks" / "12_more.ipynb")
    with pytest.raises(ValueError, match=r"notebook 12_more: sizes=\[n \*\* 2 .*: it must be a literal"):
        calls.passed("12_more", "quick")


def test_options_that_a_notebook_spreads_are_merged(project):
    code = 'more = {"b": 2}\nresults.run("12_more", more, profile=profile, **{"a": 1, **more})'
    parameters = new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[parameters, new_code_cell(code)]), project / "notebooks" / "12_more.ipynb")
    assert calls.passed("12_more", "quick") == {"a": 1, "b": 2}


def test_a_copy_of_a_notebook_changes_no_definition(project):
    source = (project / "notebooks" / "11_hits.ipynb").read_text()
    (project / "notebooks" / "11_hits-Copy1.ipynb").write_text(source.replace("[16, 32]", "[64]"))
    assert calls.tables() == {"11_hits": "11_hits", "13_ttft": "13_ttft"}
    assert calls.passed("11_hits", "quick")["blocks"] == [16, 32]
    ran(7.3)
    assert claims.scorecard("reference")["state"].tolist() == ["reproduced", "needs GPU"]


@pytest.mark.parametrize("content", ["", "{}", '{"cells": [{}]}', "[1]"])
def test_a_broken_notebook_concerns_its_own_claims_alone(project, content):
    (project / "notebooks" / "13_ttft.ipynb").write_text(content)
    ran(7.3)
    card = claims.scorecard("reference")
    assert card["state"].tolist() == ["reproduced", "needs GPU"] and card["notebook"].tolist() == ["11_hits", ""]


def test_cells_that_are_not_python_are_passed_over(project):
    notebook = nbformat.read(project / "notebooks" / "11_hits.ipynb", as_version=4)
    notebook.cells[1:1] = [new_code_cell("%%bash\nls *.txt | wc"), new_code_cell("len?"), new_code_cell("!ls")]
    nbformat.write(notebook, project / "notebooks" / "11_hits.ipynb")
    assert calls.passed("11_hits", "quick") == {"blocks": [16, 32], "seeds": 3}


@pytest.mark.parametrize("damage", ["empty", "cut off", "no record"])
def test_a_damaged_table_is_an_error_of_its_claims_and_never_the_end_of_the_scorecard(project, damage):
    ran(7.3)
    file = results.file("11_hits", "reference")
    if damage == "no record":
        pd.DataFrame({"ratio": [7.3]}).to_parquet(file)
    else:
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:-40])
    card = claims.scorecard("reference")
    assert card["state"].tolist() == ["error", "needs GPU"] and card["reason"][0]


def test_a_table_is_read_once_for_all_its_claims(project, monkeypatch):
    again = TOML[TOML.index("[11_hits.marconi") :].replace("marconi-fig7", "marconi-fig8")
    (project / "claims.toml").write_text(TOML + again)
    ran(7.3)
    loaded, load = [], results.load
    monkeypatch.setattr(results, "load", lambda *arguments: loaded.append(arguments) or load(*arguments))
    assert len(claims.scorecard("reference")) == 2
    assert loaded == [("11_hits", "reference")]


def test_the_papers_value_is_read_from_the_claim(project):
    assert claims.paper("marconi-fig7") == 7.3
    with pytest.raises(ValueError, match="marconi-fig9 states no value"):
        claims.paper("marconi-fig9")


def test_the_scorecard_has_a_row_a_claim_and_reasons_only_for_what_is_not_reproduced(project):
    ran(7.3)
    card = claims.scorecard("reference").set_index("id")
    assert card["state"].to_dict() == {"marconi-fig7": "reproduced", "marconi-fig9": "needs GPU"}
    assert card["reason"].to_dict() == {"marconi-fig7": "", "marconi-fig9": "No GPU here."}
    assert claims.summary(card) == "2 claims: 1 reproduced, 1 needs GPU"
    ran(2.0)
    assert claims.scorecard("reference")["reason"].tolist() == ["Another tokenizer.", "No GPU here."]


def test_a_profile_has_its_own_states(project):
    ran(7.3, "reference")
    ran(0.5, "quick")
    assert [claims.check("marconi-fig7", each).state for each in ("quick", "reference")] == [
        "differs",
        "reproduced",
    ]


def test_a_notebook_shows_its_own_claims(project):
    assert claims.scorecard("quick", notebook="13_ttft")["id"].tolist() == ["marconi-fig9"]


@pytest.mark.parametrize("text", ["", TOML], ids=["no claims", "a claim"])
def test_a_scorecard_of_an_unknown_profile_is_refused(project, text):
    (project / "claims.toml").write_text(text)
    with pytest.raises(ValueError, match="profile must be one of"):
        claims.scorecard("fast")


def test_the_scorecard_of_no_claims_is_an_empty_table(root):
    (root / "claims.toml").write_text("")
    card = claims.scorecard("reference")
    assert len(card) == 0 and list(card.columns) == list(claims.COLUMNS)
    assert claims.summary(card) == "0 claims"


def test_the_page_of_claims_is_written_whole(project):
    ran(2.0)
    page = claims.write_page()
    text = page.read_text(encoding="utf-8")
    assert page == project / "CLAIMS.md" and text == claims.page()
    assert (
        "| `marconi-fig7` | Marconi, figure 7 | Hit rate over vLLM+ \\| block 32. | 7.3 x | 2 x "
        "| direction holds | simulated | [11_hits](notebooks/11_hits.ipynb) | 1.5 |\n"
    ) in text
    assert "- `marconi-fig7` (direction holds): Another tokenizer.\n" in text


def test_a_sentence_over_several_lines_stays_one_row(project):
    (project / "claims.toml").write_text(TOML.replace('"Hit rate over vLLM+ | block 32."', '"""Hit\nrate."""'))
    assert "| Hit rate. |" in claims.markdown_table()


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(7.333333, "x", "7.333 x"), (18.97, "%", "18.97 %"), (123456.7, "", "123,457"), (math.nan, "x", "–")],
)
def test_numbers_are_written_with_four_digits_and_the_unit(value, unit, text):
    assert claims.number(value, unit) == text
