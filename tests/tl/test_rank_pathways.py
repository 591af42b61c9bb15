import warnings

import anndata as ad
import decoupler as dc
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import stats

import stfuse


@pytest.fixture
def scored():
    """Two pathways in three sections with offsets and spreads of their own; "up" is raised in group b of all, "mixed" in x only."""
    rng = np.random.default_rng(0)
    n = 240
    section = np.repeat(["x", "y", "z"], n // 3)
    group = np.tile(np.repeat(["a", "b", "c", "c"], 20), 3)
    score = rng.normal(size=(n, 3))
    score[group == "b", 0] += 2
    score[(group == "b") & (section == "x"), 1] += 6
    score[(group == "b") & (section != "x"), 1] -= 0.8
    score = score * pd.Series(section).map({"x": 1, "y": 5, "z": 0.1}).to_numpy()[:, None]
    score += pd.Series(section).map({"x": 0, "y": 30, "z": -4}).to_numpy()[:, None]
    adata = ad.AnnData(obs=pd.DataFrame({"section": section, "group": group}, index=[f"c{i}" for i in range(n)]))
    adata.obsm["score_progeny"] = pd.DataFrame(score, columns=["up", "mixed", "none"], index=adata.obs_names)
    return adata


def zscores(adata):
    """Standardise section by section, the slow way."""
    score = adata.obsm["score_progeny"].copy()
    for name in adata.obs["section"].unique():
        rows = adata.obs["section"] == name
        score[rows] = (score[rows] - score[rows].mean()) / score[rows].std()
    return score


def row(adata, group, pathway, key="rank_pathways"):
    table = adata.uns[key]
    return table[(table["group"] == group) & (table["pathway"] == pathway)].squeeze()


def test_raised_pathway_is_first(scored):
    stfuse.tl.rank_pathways(scored, "group", library_key="section")
    table = scored.uns["rank_pathways"]
    columns = ["group", "reference", "pathway", "stat", "meanchange", "pval", "padj"]
    assert list(table.columns) == [*columns, "n_sections", "n_sections_agreeing"]
    assert len(table) == 9
    assert list(table["group"].cat.categories) == ["a", "b", "c"]
    first = table[table["group"] == "b"].iloc[0]
    assert first["pathway"] == "up"
    assert first["padj"] < 1e-10
    assert row(scored, "b", "none")["padj"] > 0.01


def test_differences_and_agreement_by_hand(scored):
    stfuse.tl.rank_pathways(scored, "group", library_key="section")
    stfuse.tl.rank_pathways(scored, "group", library_key="section", reference="a", key_added="from_a")
    z, group, section = zscores(scored), scored.obs["group"], scored.obs["section"]
    for key, other in (("rank_pathways", None), ("from_a", "a")):
        for name in "bc":
            rest = group != name if other is None else group == other
            for pathway in z:
                difference = z.loc[group == name, pathway].mean() - z.loc[rest, pathway].mean()
                each = [
                    z.loc[(group == name) & (section == s), pathway].mean()
                    - z.loc[rest & (section == s), pathway].mean()
                    for s in "xyz"
                ]
                found = row(scored, name, pathway, key)
                assert found["meanchange"] == pytest.approx(difference)
                assert found["n_sections"] == 3
                assert found["n_sections_agreeing"] == sum(np.sign(each) == np.sign(difference))
                assert found["reference"] == (other or "rest")
    assert row(scored, "b", "mixed")["n_sections_agreeing"] == 1
    assert row(scored, "b", "up")["n_sections_agreeing"] == 3
    assert set(scored.uns["from_a"]["group"]) == {"b", "c"}


@pytest.mark.parametrize("method", ["t-test", "wilcoxon", "t-test_overestim_var"])
def test_tests_are_those_of_decoupler_and_scipy(scored, method):
    stfuse.tl.rank_pathways(scored, "group", library_key="section", method=method)
    z = zscores(scored)
    by_hand = dc.tl.rankby_group(ad.AnnData(z, obs=scored.obs[["group"]]), "group", method=method)
    ours = scored.uns["rank_pathways"].astype({"group": str, "pathway": str}).set_index(["group", "pathway"])
    theirs = by_hand.astype({"group": str, "name": str}).set_index(["group", "name"]).loc[ours.index]
    for column in ("stat", "meanchange", "pval", "padj"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-9)
    b, rest = z["up"][scored.obs["group"] == "b"], z["up"][scored.obs["group"] != "b"]
    if method == "t-test":
        assert ours.loc[("b", "up"), "stat"] == pytest.approx(stats.ttest_ind(b, rest, equal_var=False).statistic)
    if method == "wilcoxon":
        assert ours.loc[("b", "up"), "stat"] == pytest.approx(stats.ranksums(b, rest).statistic)


def test_offsets_of_sections_are_no_difference(scored):
    scored.obs["site"] = np.where(scored.obs["section"] == "y", "far", "near")
    stfuse.tl.rank_pathways(scored, "site", library_key="section")
    table = scored.uns["rank_pathways"]
    np.testing.assert_allclose(table["meanchange"], 0, atol=1e-12)
    assert (table["n_sections"] == 0).all()  # no section has both
    stfuse.tl.rank_pathways(scored, "site", key_added="pooled")
    assert scored.uns["pooled"]["meanchange"].abs().max() > 1
    assert "n_sections" not in scored.uns["pooled"]


def test_sections_are_found(scored):
    scored.uns["spatial"] = {name: {} for name in "xyz"}
    stfuse.tl.rank_pathways(scored, "group")
    assert (scored.uns["rank_pathways"]["n_sections"] == 3).all()


def test_left_out_observations(scored):
    """Missing groups, "unassigned" and missing scores are no group and no part of the rest."""
    expected = scored.copy()
    extra = scored[:40].copy()
    extra.obs_names = [f"extra{i}" for i in range(40)]
    extra.obs["group"] = [None] * 20 + ["unassigned"] * 20
    both = ad.concat([scored, extra])
    # the scores of a section stay as they are standardised
    both.obsm["score_progeny"].iloc[240:] = 0.0
    stfuse.tl.rank_pathways(both, "group")
    record = both.uns["rank_pathways_params"]
    assert record["n_obs"] == {"a": 60, "b": 60, "c": 120}
    both.obsm["score_progeny"].iloc[240:] = np.nan
    both.obs["group"] = both.obs["group"].fillna("a")
    stfuse.tl.rank_pathways(both, "group", library_key="section")
    stfuse.tl.rank_pathways(expected, "group", library_key="section")
    pd.testing.assert_frame_equal(both.uns["rank_pathways"], expected.uns["rank_pathways"])


def test_numbers_are_groups_in_their_order(scored):
    scored.obs["cluster"] = scored.obs["group"].map({"a": 2, "b": 10, "c": 1})
    stfuse.tl.rank_pathways(scored, "cluster")
    assert list(scored.uns["rank_pathways"]["group"].cat.categories) == ["1", "2", "10"]


def test_groups_of_one_are_not_tested(scored):
    scored.obs.loc["c0", "group"] = "lonely"
    with pytest.warns(UserWarning, match="one observation can't be tested.*'lonely'"):
        stfuse.tl.rank_pathways(scored, "group", library_key="section")
    table = scored.uns["rank_pathways"]
    assert set(table["group"]) == {"a", "b", "c"}
    assert table["padj"].notna().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="reference='lonely' has one observation"):
            stfuse.tl.rank_pathways(scored, "group", reference="lonely")


def test_a_section_of_one_is_left_out(scored):
    scored.obs["section"] = scored.obs["section"].where(scored.obs_names != "c0", "single")
    with pytest.warns(UserWarning, match="have one observation with scores.*'single'"):
        stfuse.tl.rank_pathways(scored, "group", library_key="section")
    assert scored.uns["rank_pathways_params"]["n_obs"]["a"] == 59


def test_scores_without_spread(scored):
    scored.obsm["score_progeny"]["none"] = 0.1
    stfuse.tl.rank_pathways(scored, "group", library_key="section")
    found = row(scored, "b", "none")
    assert found["meanchange"] == 0
    assert found["padj"] == 1


def test_bad_input(scored, assert_same):
    before = scored.copy()
    scored.obsm["X_array"] = np.ones((240, 2))
    for arguments, error, message in (
        ({"groupby": "groups"}, KeyError, "Did you mean 'group'"),
        ({"score_key": "score_progny"}, KeyError, "Did you mean 'score_progeny'.*stfuse.tl.pathways"),
        ({"score_key": "X_array"}, ValueError, "must be a DataFrame"),
        ({"reference": "B"}, ValueError, "Did you mean 'b'"),
        ({"method": "anova"}, ValueError, "method must be one of"),
        ({"library_key": "slide"}, KeyError, "No obs column 'slide'"),
        ({"groupby": 3}, TypeError, "groupby"),
        ({"copy": 1}, TypeError, "copy"),
        ({"key_added": "a/b"}, ValueError, "slash"),
        ({"key_added": "score_progeny"}, ValueError, "score_key"),
    ):
        with pytest.raises(error, match=message):
            stfuse.tl.rank_pathways(scored, **{"groupby": "group", **arguments})
    scored.uns["mine"] = 1
    with pytest.raises(ValueError, match="did not write"):
        stfuse.tl.rank_pathways(scored, "group", key_added="mine")
    del scored.uns["mine"], scored.obsm["X_array"]
    assert_same(scored, before)


def test_too_few_groups(scored):
    scored.obs["one"] = "a"
    with pytest.raises(ValueError, match=r"1 group\(s\) with scores \('a'\)"):
        stfuse.tl.rank_pathways(scored, "one")
    scored.obs["nameless"] = None
    with pytest.raises(ValueError, match=r"0 group\(s\)"):
        stfuse.tl.rank_pathways(scored, "nameless")
    with pytest.raises(ValueError, match="can be tested"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stfuse.tl.rank_pathways(scored[[0, 30]].copy(), "group")
    scored.obsm["score_progeny"].loc[:] = np.nan
    with pytest.raises(ValueError, match="every row is NaN"):
        stfuse.tl.rank_pathways(scored, "group")


def test_partly_missing_scores_are_refused(scored):
    scored.obsm["score_progeny"].iloc[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN inside 1 row"):
        stfuse.tl.rank_pathways(scored, "group")


def test_record_and_files(scored, tmp_path, assert_same):
    before = scored.copy()
    copied = stfuse.tl.rank_pathways(scored, "group", library_key="section", copy=True)
    assert_same(scored, before)
    copied.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(
        back.uns["rank_pathways"].astype({"group": str, "pathway": str, "reference": str}),
        copied.uns["rank_pathways"].astype({"group": str, "pathway": str, "reference": str}),
        check_index_type=False,
        check_column_type=False,
    )
    assert back.uns["rank_pathways_params"]["params"]["groupby"] == "group"
    stfuse.tl.rank_pathways(back, "group", key_added="again")
    stfuse.tl.rank_pathways(back, "group", key_added="again", library_key="section")  # its own is replaced
    assert "n_sections" in back.uns["again"]


def test_mudata(scored):
    stfuse.tl.rank_pathways(scored, "group", library_key="section")
    rna = ad.AnnData(np.ones((240, 2)), obs=scored.obs)
    mdata = MuData({"rna": rna})
    mdata.obsm["score_progeny"] = scored.obsm["score_progeny"]
    stfuse.tl.rank_pathways(mdata, "rna:group", library_key="rna:section")
    pd.testing.assert_frame_equal(mdata.uns["rank_pathways"], scored.uns["rank_pathways"])
