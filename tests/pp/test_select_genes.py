"""Selection of genes: what is written, what it may not see, and what it refuses."""

import warnings

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, ImplicitModificationWarning
from scipy.sparse import csr_matrix
from sklearn.feature_selection import RFECV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stfuse._folds import stratified_group_folds
from stfuse.datasets import mob
from stfuse.pp import pseudobulk, select_genes


def cohort(n=80, p=120, seed=0, informative=6):
    """Two slides a patient; some genes differ between two subtypes."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n // 2), 2)
    subtype = np.array(["IDC", "ILC"])[rng.integers(0, 2, n // 2)[patient]]
    x = rng.normal(size=(n, p)).astype(np.float32)
    x[:, :informative] += 1.5 * (subtype == "ILC")[:, None]
    x *= rng.uniform(0.3, 6, p).astype(np.float32)
    obs = pd.DataFrame(
        {"subtype": subtype, "patient": [f"P{i}" for i in patient]}, index=[f"slide{i}" for i in range(n)]
    )
    return AnnData(x, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(p)]))


def refused(slides, contents, error, match, *args, **kwargs):
    before = contents(slides)
    with pytest.raises(error, match=match):
        select_genes(slides, *args, **kwargs)
    np.testing.assert_equal(contents(slides), before)


def test_number_and_genes_are_those_of_scikit_learn(contents):
    slides = cohort()
    before = contents(slides)
    assert select_genes(slides, "subtype", groups="patient", seed=4) is None
    labels = (slides.obs["subtype"] == "ILC").to_numpy().astype(int)
    fold = stratified_group_folds(labels, pd.factorize(slides.obs["patient"])[0], 5, 4)
    expected = RFECV(SVC(kernel="linear"), step=0.05, cv=PredefinedSplit(fold))
    expected.fit(StandardScaler().fit_transform(slides.X.astype(float)), labels)
    np.testing.assert_array_equal(slides.var["selected"], expected.support_)
    np.testing.assert_array_equal(slides.var["selected_rank"], expected.ranking_)
    record = slides.uns.pop("selected")
    assert record["n_genes"] == record["n_selected"] == expected.n_features_
    np.testing.assert_array_equal(record["curve"]["n_genes"], expected.cv_results_["n_features"])
    np.testing.assert_allclose(record["curve"]["accuracy"], expected.cv_results_["mean_test_score"])
    np.testing.assert_allclose(record["curve"]["sd"], expected.cv_results_["std_test_score"], atol=1e-12)
    assert record["accuracy"] == record["curve"]["accuracy"].max() > 0.9
    assert record["classes"] == slides.obs["subtype"].value_counts().to_dict()
    slides.var = slides.var[[]]
    np.testing.assert_equal(contents(slides), before)


def test_signal_is_found_among_noise():
    slides = cohort(p=1000)
    select_genes(slides, "subtype", n_genes=10)
    assert slides.var["selected"].sum() == 10 and slides.var["selected"].iloc[:6].all()
    assert "curve" not in slides.uns["selected"]
    assert slides.var["selected_rank"].min() == 1 and (slides.var["selected_rank"] > 0).all()


def test_units_matter_only_unscaled():
    slides = cohort()
    other = slides.copy()
    other.X = slides.X * np.float32(2) ** np.random.default_rng(1).integers(-6, 7, slides.n_vars).astype(np.float32)
    for scale in (True, False):
        select_genes(slides, "subtype", n_genes=12, scale=scale)
        select_genes(other, "subtype", n_genes=12, scale=scale)
        assert np.array_equal(slides.var["selected"], other.var["selected"]) == scale


def test_curated_genes_are_added(tmp_path):
    slides = cohort()
    (tmp_path / "census.csv").write_text("Gene Symbol,Tier\nG0,1\nG99,1\nXYZ,2\n")
    with pytest.warns(UserWarning, match=r"1 of 3 curated genes are not in var_names \(for example 'XYZ'\)"):
        select_genes(slides, "subtype", n_genes=6, curated=tmp_path / "census.csv")
    by = slides.var["selected_by"]
    assert by["G0"] == "both" and by["G99"] == "curated" and (by == "rfe").sum() == 5
    np.testing.assert_array_equal(by.notna(), slides.var["selected"])
    told = slides.uns["selected"]["curated"]
    assert told == {"source": "census.csv", "n_genes": 3, "n_missing": 1, "missing": ["XYZ"]}
    assert slides.uns["selected"]["n_selected"] == 7 and slides.uns["selected"]["n_genes"] == 6


def test_curated_genes_alone_need_no_labels():
    slides = cohort()
    select_genes(slides, "subtype", n_genes=5)
    select_genes(slides, method="curated", curated=["G3", "G7"])
    assert list(slides.var_names[slides.var["selected"]]) == ["G3", "G7"]
    assert "selected_rank" not in slides.var and set(slides.var["selected_by"].dropna()) == {"curated"}


def test_only_training_slides_are_read():
    slides = cohort()
    slides.obs["train"] = np.arange(80) < 60
    select_genes(slides, "subtype", train_key="train", groups="patient")
    alone = slides[:60].copy()
    select_genes(alone, "subtype", groups="patient", key_added="alone")
    other = slides.copy()
    other.X[60:] = np.nan
    other.X[70:, 3] = np.inf
    other.obs["subtype"] = [*slides.obs["subtype"][:60], *(f"unheard of {i}" for i in range(20))]
    other.obs.loc[other.obs_names[60:], "patient"] = None
    select_genes(other, "subtype", train_key="train", groups="patient")
    for found, key in ((other, "selected"), (alone, "alone")):
        np.testing.assert_array_equal(slides.var["selected_rank"], found.var[f"{key}_rank"])
        np.testing.assert_array_equal(slides.var["selected"], found.var[key])
    assert slides.uns["selected"]["n_slides"] == {
        "total": 80,
        "outside_train": 20,
        "without_label": 0,
        "without_rna": 0,
        "seen": 60,
    }


def test_no_leak_inside_the_folds_and_one_outside():
    """Labels without any truth: chance where each fold selects for itself, splendid figures where selection saw all."""
    rng = np.random.default_rng(0)
    slides = AnnData(rng.normal(size=(100, 2000)).astype(np.float32))
    slides.obs["subtype"] = rng.permutation(["a", "b"] * 50)
    x, y = slides.X, slides.obs["subtype"].to_numpy()
    select_genes(slides, "subtype", n_genes=50, key_added="outside")
    right: dict[str, list[bool]] = {"inside": [], "outside": []}
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
        slides.obs["train"] = np.isin(np.arange(100), train)
        select_genes(slides, "subtype", n_genes=50, train_key="train", key_added="inside")
        for key, found in right.items():
            genes = slides.var[key].to_numpy()
            head = LogisticRegression(max_iter=500).fit(x[np.ix_(train, genes)], y[train])
            found += list(head.predict(x[np.ix_(test, genes)]) == y[test])
    assert 0.35 < np.mean(right["inside"]) < 0.65  # three standard errors of 100 coins
    assert np.mean(right["outside"]) > 0.9


def test_genes_that_tell_nothing_are_told():
    rng = np.random.default_rng(1)
    slides = AnnData(rng.normal(size=(100, 500)).astype(np.float32))
    slides.obs["subtype"] = rng.permutation(["a"] * 85 + ["b"] * 15)
    with pytest.warns(UserWarning, match="naming always the largest class .0.850."):
        select_genes(slides, "subtype")
    assert slides.uns["selected"]["largest_class"] == pytest.approx(0.85)


def test_patients_are_not_torn_apart():
    """Slides of a patient are twins and labels noise: only with its twin in training is a slide recognised."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 2)
    x = (rng.normal(size=(40, 300))[patient] + 0.05 * rng.normal(size=(80, 300))).astype(np.float32)
    obs = pd.DataFrame({"label": np.array(["a", "b"] * 20)[patient], "patient": patient}, index=map(str, range(80)))
    slides = AnnData(x, obs=obs)
    select_genes(slides, "label", key_added="torn")
    select_genes(slides, "label", groups="patient", key_added="whole")
    assert slides.uns["torn"]["accuracy"] > 0.9 and slides.uns["whole"]["accuracy"] < 0.75
    assert slides.uns["torn"]["largest_class"] == 0.5


def test_slides_without_rna_or_label_are_left_out():
    slides = cohort()
    slides.X[3] = np.nan
    slides.obs.loc["slide7", "subtype"] = None
    rest = slides[[i for i in range(80) if i not in (3, 7)]].copy()
    select_genes(slides, "subtype", n_genes=9)
    select_genes(rest, "subtype", n_genes=9)
    np.testing.assert_array_equal(slides.var["selected_rank"], rest.var["selected_rank"])
    counts = slides.uns["selected"]["n_slides"]
    assert (counts["without_rna"], counts["without_label"], counts["seen"]) == (1, 1, 78)


def test_genes_that_do_not_vary_come_last():
    slides = cohort()
    slides.X[:, [5, 50]] = 3.3
    select_genes(slides, "subtype", n_genes=118)
    assert list(slides.var_names[~slides.var["selected"]]) == ["G5", "G50"]
    assert slides.uns["selected"]["n_constant_genes"] == 2
    select_genes(slides, "subtype", n_genes=4)
    assert (slides.var["selected_rank"].iloc[[5, 50]] == slides.var["selected_rank"].max()).all()
    assert (slides.var["selected_rank"] == slides.var["selected_rank"].max()).sum() == 2


@pytest.mark.parametrize("kind", ["csr", "dask", "backed", "layer", "view", "float64"])
def test_where_the_values_lie_does_not_matter(kind, tmp_path):
    slides = cohort()
    slides.X[slides.X < 0] = 0
    select_genes(slides, "subtype", n_genes=9)
    other, layer = slides.copy(), None
    del other.uns["selected"]
    other.var = other.var[[]]
    if kind == "csr":
        other.X = csr_matrix(other.X)
    elif kind == "dask":
        other.X = da.from_array(other.X, chunks=(20, 30))
    elif kind == "layer":
        other.layers["log"], other.X, layer = other.X.copy(), np.zeros_like(other.X), "log"
    elif kind == "view":
        other = other[:, :]
    elif kind == "float64":
        other.X = other.X.astype(np.float64)
    else:
        other.write_h5ad(tmp_path / "slides.h5ad")
        other = ad.read_h5ad(tmp_path / "slides.h5ad", backed="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        select_genes(other, "subtype", n_genes=9, layer=layer)
    np.testing.assert_array_equal(slides.var["selected_rank"], other.var["selected_rank"])


def test_copy_and_file(tmp_path):
    slides = cohort()
    found = select_genes(slides, "subtype", curated=["G3"], copy=True)
    assert "selected" not in slides.var and not slides.uns
    found.write_h5ad(tmp_path / "slides.h5ad")
    again = ad.read_h5ad(tmp_path / "slides.h5ad")
    pd.testing.assert_frame_equal(again.var, found.var, check_categorical=False, check_index_type=False)
    assert again.uns["selected"]["n_genes"] == found.uns["selected"]["n_genes"]
    select_genes(again, "subtype", n_genes=4)  # an earlier result is replaced
    assert again.var["selected"].sum() == 4


def test_bad_slides(contents):
    slides = cohort()
    slides.obs["one"] = "IDC"
    slides.obs["many"] = slides.obs_names
    slides.obs["nobody"] = pd.Series(index=slides.obs_names, dtype=object)
    slides.obs["half"] = np.linspace(0, 1, 80)
    slides.obs["holes"] = slides.obs["patient"].where(slides.obs["patient"] != "P3")
    slides.obs["along"] = slides.obs["subtype"]
    slides.obs["few"] = [f"F{i // 30}" for i in range(80)]
    refused(slides, contents, KeyError, "No column 'subtyp' .label_key.*mean 'subtype'", "subtyp")
    refused(slides, contents, KeyError, "No column 'patients' .groups", "subtype", groups="patients")
    refused(slides, contents, KeyError, "No column 'train' .train_key", "subtype", train_key="train")
    refused(slides, contents, ValueError, "train_key. must be boolean", "subtype", train_key="subtype")
    refused(slides, contents, ValueError, "only the class 'IDC'", "one")
    refused(slides, contents, ValueError, "80 classes in 80 slides", "many")
    refused(slides, contents, ValueError, "have no class", "nobody")
    refused(slides, contents, ValueError, "decimal numbers", "half")
    refused(slides, contents, ValueError, "2 missing value", "subtype", groups="holes")
    refused(slides, contents, ValueError, "3 patients.*fewer than n_splits=5", "subtype", groups="few")
    refused(slides, contents, ValueError, "fewer than n_splits=81", "subtype", n_splits=81)
    refused(slides, contents, ValueError, "No class has as many slides as n_splits=70", "subtype", n_splits=70)
    refused(slides, contents, ValueError, "leaves slides of one class", "subtype", groups="along", n_splits=2)
    refused(slides, contents, KeyError, "No layer 'log'", "subtype", layer="log")
    slides.X[4, 7] = np.nan
    refused(slides, contents, ValueError, "part of 1 slide.*'slide4', 1 of 120 genes", "subtype")
    slides.X[4, 7] = np.inf
    refused(slides, contents, ValueError, "infinite values .first in row 4, column 7", "subtype")
    slides.X[:] = 1.5
    refused(slides, contents, ValueError, "no gene that differs", "subtype")
    slides.X[:] = np.nan
    refused(slides, contents, ValueError, "The 0 slides.*no class", "subtype")
    slides.var_names = ["G0", *slides.var_names[:-1]]
    refused(slides, contents, ValueError, "var_names_make_unique", "subtype")


def test_bad_arguments(contents):
    slides = cohort()
    slides.var["mine"] = 1
    for error, match, call in [
        (ValueError, "method must be one of", {"method": "lasso"}),
        (ValueError, "needs genes", {"method": "curated"}),
        (ValueError, "None of the 1 curated genes.*'Brca1'.*'G0'", {"curated": ["Brca1"]}),
        (ValueError, "n_genes=121 is more than the 120", {"n_genes": 121}),
        (ValueError, "n_genes must be", {"n_genes": 0}),
        (ValueError, "step must be", {"step": 0}),
        (ValueError, "step must be", {"step": 1}),
        (ValueError, "n_splits must be", {"n_splits": 1}),
        (TypeError, "scale must be True or False", {"scale": "yes"}),
        (ValueError, "would overwrite var", {"key_added": "mine"}),
        (ValueError, "slash", {"key_added": "a/b"}),
    ]:
        refused(slides, contents, error, match, "subtype", **call)
    refused(slides, contents, TypeError, "label_key must be a string")
    with pytest.raises(TypeError, match="slides must be an AnnData"):
        select_genes({"a": slides}, "subtype")


def test_lost_classes_and_raw_counts_are_told():
    slides = cohort()
    slides.obs.loc[["slide0", "slide1"], "subtype"] = "rare"
    with pytest.warns(UserWarning, match="'rare' are missing from the training part"):
        select_genes(slides, "subtype", groups="patient")
    slides.X = np.random.default_rng(0).poisson(5, slides.shape).astype(np.float32)
    with pytest.warns(UserWarning, match="look like raw counts"):
        select_genes(slides, "subtype", n_genes=5)


def test_memory_is_bounded():
    """Wide slides are read in blocks: no array of the size of the matrix, which is held once, is made."""
    import tracemalloc

    rng = np.random.default_rng(0)
    slides = AnnData(rng.standard_normal((120, 200_000), dtype=np.float32))
    slides.obs["subtype"] = ["a", "b"] * 60
    select_genes(cohort(), "subtype", n_genes=5)  # imports
    tracemalloc.start()
    select_genes(slides, "subtype", n_genes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert slides.var["selected"].sum() == 100_000
    assert peak < 0.75 * slides.X.nbytes


def test_layers_of_the_olfactory_bulb():
    """Layers as slides: the genes that tell the granule layer in three sections tell it in the fourth."""
    import scanpy as sc

    adata = mob()
    slides = pseudobulk(adata, ["section", "layer"])
    sc.pp.normalize_total(slides)
    sc.pp.log1p(slides)
    slides.obs["train"] = (slides.obs["section"] != slides.obs["section"].iloc[0]).to_numpy()
    select_genes(slides, "layer", train_key="train", n_genes=40)
    x, y, train = slides[:, slides.var["selected"]].X, slides.obs["layer"].astype(str), slides.obs["train"].to_numpy()
    assert LogisticRegression(max_iter=1000).fit(x[train], y[train]).score(x[~train], y[~train]) == 1


def test_subtypes_of_breast_cancer(shared_data):
    table = pd.read_csv(shared_data / "tcga" / "tcga_brca_all_clean.csv.zip", low_memory=False)
    rna = table.filter(like="_rnaseq")
    obs = table[["case_id", "oncotree_code"]].set_index(table["slide_id"])
    slides = AnnData(rna.to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=rna.columns.str.removesuffix("_rnaseq")))
    subtype = slides.obs["oncotree_code"]
    slides.obs["subtype"] = subtype.where(subtype.isin(["IDC", "ILC"]))
    slides.obs["train"] = slides.obs["case_id"].isin(slides.obs["case_id"].unique()[::2])
    file = shared_data / "tcga" / "signatures.csv"
    with pytest.warns(UserWarning, match="curated genes are not in var_names"):
        select_genes(slides, "subtype", groups="case_id", train_key="train", curated=file)
    assert slides.var.loc["CDH1", "selected_by"] == "both"  # E-cadherin, whose loss defines lobular carcinoma
    rfe = slides.var["selected_rank"].to_numpy() == 1
    known, train = slides.obs["subtype"].notna().to_numpy(), slides.obs["train"].to_numpy()
    test, train = known & ~train, known & train
    head = SVC(kernel="linear").fit(slides.X[np.ix_(train, rfe)], slides.obs["subtype"][train])
    assert head.score(slides.X[np.ix_(test, rfe)], slides.obs["subtype"][test]) > 0.86  # always IDC: .82
    assert slides.uns["selected"]["accuracy"] > 0.87
