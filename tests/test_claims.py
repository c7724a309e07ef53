"""claims.toml against what it points to: metrics, tables, notebooks, and the table in REPRODUCE.md."""

import pytest

from figures import claims, paths, results

CLAIMS = claims.read()
COMPUTED = [claim for claim in CLAIMS if claim.needs is None]
SYSTEMS = {"Marconi", "Lazarus", "Zen"}

each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
each_computed_claim = pytest.mark.parametrize("claim", COMPUTED, ids=lambda claim: claim.id)
has_reference = pytest.mark.skipif(
    not list(paths.results("reference").glob("*.parquet")), reason="no reference results are committed yet"
)


@each_claim
def test_a_claim_belongs_to_a_system_and_says_so_in_its_id(claim):
    assert claim.system in SYSTEMS
    assert claim.id.startswith(f"{claim.system.lower()}-")


@each_claim
def test_the_notebook_of_a_claim_exists(claim):
    assert claim.notebook in calls.names()


@each_computed_claim
def test_the_metric_of_a_claim_can_be_called(claim):
    assert callable(claim.compute())


@each_computed_claim
def test_the_notebook_of_a_claim_makes_its_table(claim):
    text = (paths.notebooks() / f"{claim.notebook}.ipynb").read_text(encoding="utf-8")
    assert claim.table in text


@has_reference
@each_computed_claim
def test_the_reference_results_settle_every_claim_and_a_differing_one_has_a_reason(claim):
    checked = claims.check(claim, "reference")
    assert checked.state in (claims.REPRODUCED, claims.DIRECTION, claims.DIFFERS)
    assert checked.state != claims.DIFFERS or claim.reason


@has_reference
@pytest.mark.parametrize("file", sorted(paths.results("reference").glob("*.parquet")), ids=lambda file: file.stem)
def test_every_reference_table_is_of_the_full_profile_and_has_a_notebook_that_makes_it(file):
    assert results.provenance(file.stem)["profile"] == "full"
    sources = [(paths.notebooks() / f"{name}.ipynb").read_text(encoding="utf-8") for name in calls.names()]
    assert any(file.stem in source for source in sources)


def test_the_claims_table_of_reproduce_is_current():
    text = (paths.ROOT / "REPRODUCE.md").read_text(encoding="utf-8")
    assert claims.replace_block(text, claims.markdown_table("reference")) == text, "artifact scorecard --write"
