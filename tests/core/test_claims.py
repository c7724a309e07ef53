"""States of claims by their rules; wrong entries refused by the claim's name; the block in REPRODUCE.md."""

import math
import sys
import types

import pandas as pd
import pytest

from figures import claims, results

TOML = """
[[claim]]
id = "marconi-fig7"
system = "Marconi"
figure = "figure 7"
sentence = "Hit rate over vLLM+ | block 32."
paper = 7.3
unit = "x"
metric = "metrics_under_test:ratio"
table = "11_hits"
reproduced = { relative = 0.05 }
direction = { at_least = 1 }
evidence = "simulated"
notebook = "11_hits"
minutes = { quick = 0.5, full = 4 }
reason = "Another tokenizer."
"""
GPU = """
[[claim]]
id = "marconi-fig9"
system = "Marconi"
figure = "figure 9"
sentence = "Time to first token."
evidence = "measured"
notebook = "13_ttft"
minutes = { quick = 1, full = 2 }
needs = "GPU"
reason = "No GPU here."
"""


@pytest.fixture
def metric(monkeypatch):
    """The module that the claim's metric names: the mean of the table's column `ratio`."""
    module = types.ModuleType("metrics_under_test")
    module.ratio = lambda table: table["ratio"].mean()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def project(root, metric):
    (root / "claims.toml").write_text(TOML + GPU)
    return root


def ran(ratio, profile="reference"):
    table = pd.DataFrame({"ratio": [ratio]})
    results.save(table, "11_hits", profile=profile, parameters={}, seed=None, seconds=0)


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
    ("old", "new", "told"),
    [
        ('unit = "x"', 'units = "x"', "claim marconi-fig7: units: Extra inputs"),
        ("relative = 0.05", "relativ = 0.05", "claim marconi-fig7: reproduced.relativ: Extra inputs"),
        ("{ relative = 0.05 }", "{}", "exactly one of relative"),
        ("{ relative = 0.05 }", "{ relative = 0.05, at_least = 1 }", "exactly one of relative"),
        ("{ relative = 0.05 }", "{ between = [2, 1] }", "between must be"),
        ("paper = 7.3", "", "need the paper's value"),
        ('evidence = "simulated"', 'evidence = "guessed"', "claim marconi-fig7: evidence"),
        ('table = "11_hits"', "", "metric, table and reproduced must be given"),
        (
            'sentence = "Hit',
            'state = "reproduced"\nsentence = "Hit',
            "claim marconi-fig7: state: Extra inputs",
        ),
        ('needs = "GPU"', 'needs = "GPU"\ntable = "11_hits"', "claim marconi-fig9: .*needs excludes"),
        ('id = "marconi-fig9"', 'id = "marconi-fig7"', "claim marconi-fig7: id must be unique"),
        ('id = "marconi-fig9"', 'id = "Figure 9"', "claim Figure 9: id"),
        ('id = "marconi-fig9"\n', "", "claim number 2: id"),
        ("[[claim]]", "[[claims]]", r"must hold \[\[claim\]\] tables only, got claims"),
        ("paper = 7.3", "paper = ", r"claims.toml: .*line 7"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(project, old, new, told):
    text = TOML + GPU
    assert old in text
    (project / "claims.toml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=told):
        claims.read()


def test_an_unknown_claim_is_refused(project):
    with pytest.raises(ValueError, match="claim must be one of marconi-fig7, marconi-fig9, got 'fig7'"):
        claims.check("fig7", "quick")


def test_a_metric_that_names_nothing_is_refused_with_its_claim(project, metric):
    ran(7.3)
    del metric.ratio
    with pytest.raises(ValueError, match="claim marconi-fig7: metric must name a function"):
        claims.check("marconi-fig7", "reference")


def test_a_metric_that_fails_is_told_with_its_claim_and_table(project, metric):
    ran(7.3)
    metric.ratio = lambda table: table["no such column"].mean()
    with pytest.raises(ValueError, match=r"claim marconi-fig7: .* failed on 11_hits \(reference\): KeyError"):
        claims.scorecard("reference")


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


def test_the_block_in_the_text_is_replaced_and_nothing_else(project):
    ran(2.0)
    page = project / "REPRODUCE.md"
    page.write_text(f"# Top\n\n{claims.BEGIN}\n| stale row |\n{claims.END}\n\nBelow – stays.\n", encoding="utf-8")
    claims.write_block(page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Top\n\n") and text.endswith(f"{claims.END}\n\nBelow – stays.\n")
    assert "stale" not in text
    assert (
        "| `marconi-fig7` | Marconi, figure 7 | Hit rate over vLLM+ \\| block 32. | 7.3 x | 2 x "
        "| direction holds | simulated | [11_hits](notebooks/11_hits.ipynb) | 0.5 / 4 |\n"
    ) in text
    assert "- `marconi-fig7` (direction holds): Another tokenizer.\n" in text
    claims.write_block(page)
    assert page.read_text(encoding="utf-8") == text


def test_a_sentence_over_several_lines_stays_one_row(project):
    (project / "claims.toml").write_text(TOML.replace('"Hit rate over vLLM+ | block 32."', '"""Hit\nrate."""'))
    assert "| Hit rate. |" in claims.markdown_table()


@pytest.mark.parametrize("text", ["", claims.BEGIN, f"{claims.END} {claims.BEGIN}", f"{claims.BEGIN}{claims.END}" * 2])
def test_a_text_without_one_block_is_refused(text):
    with pytest.raises(ValueError, match="once each"):
        claims.replace_block(text, "table")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(7.333333, "x", "7.333 x"), (18.97, "%", "18.97 %"), (123456.7, "", "123,457"), (math.nan, "x", "–")],
)
def test_numbers_are_written_with_four_digits_and_the_unit(value, unit, text):
    assert claims.number(value, unit) == text
