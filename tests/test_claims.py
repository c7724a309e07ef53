"""claims.toml against what it points to: values, tables, notebooks, and the page CLAIMS.md."""

import pytest

from figures import calls, claims, paths, results

CLAIMS = claims.read()
COMPUTED = [claim for claim in CLAIMS if claim.needs is None]
each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
each_computed_claim = pytest.mark.parametrize("claim", COMPUTED, ids=lambda claim: claim.id)
has_reference = pytest.mark.skipif(
    not list(paths.results("reference").glob("*.parquet")), reason="no reference results are committed yet"
)


@each_claim
def test_a_notebook_makes_the_table_of_a_claim(claim):
    assert claim.notebook in calls.names()


@each_computed_claim
def test_the_value_of_a_claim_can_be_called(claim):
    assert callable(claim.metric())


def test_two_notebooks_never_make_one_table():
    made = [table for name in calls.names() for table in calls.tables_of(name)]
    assert len(made) == len(set(made))


@pytest.mark.parametrize("table", calls.tables())
def test_what_a_notebook_passes_can_be_read_in_every_profile(table):
    for profile in ("quick", "full"):
        assert isinstance(calls.passed(table, profile), dict)


@has_reference
@each_computed_claim
def test_the_reference_results_settle_every_claim_and_a_differing_one_has_a_reason(claim):
    checked = claims.check(claim, "reference")
    assert checked.state in (claims.REPRODUCED, claims.DIRECTION, claims.DIFFERS)
    assert checked.state != claims.DIFFERS or claim.reason


@has_reference
@pytest.mark.parametrize("file", sorted(paths.results("reference").glob("*.parquet")), ids=lambda file: file.stem)
def test_every_reference_table_is_of_the_full_profile_and_has_a_notebook_that_makes_it(file):
    record = results.provenance(file.stem)
    assert record["profile"] == "full"
    assert calls.other_parameters(file.stem, "reference", record) == ""


def test_the_page_of_claims_is_current():
    committed = (paths.ROOT / "CLAIMS.md").read_text(encoding="utf-8")
    assert committed == claims.page(), "artifact scorecard --write"
