import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler

import stfuse
from stfuse.tl import _predictors
from stfuse.tl._predictors_fused import model_codes
from stfuse.tl._predictors_neighbors import neighbor_weights
from stfuse.tl._predictors_ridge import PENALTIES

# Enough for a trained method to be a method.
VIEWS = ("image", "rna")
QUICK = {"clip": {"max_epochs": 2}, "umpire": {"max_epochs": 1}, "cameo": {"max_epochs": 1}}


def halves(n_obs=240, **kwargs):
    """A section to predict and the others, which are the reference."""
    adata = stfuse.datasets.synthetic_tissue(n_obs, 3, n_genes=40, n_image_features=16, seed=1, **kwargs)
    first = (adata.obs["section"] == adata.obs["section"].cat.categories[0]).to_numpy()
    return adata[first].copy(), adata[~first].copy()


@pytest.fixture
def pair():
    return halves()


def log_normalised(adata):
    counts = csr_matrix(adata.X).toarray().astype(float)
    return np.log1p(1e4 * counts / counts.sum(1, keepdims=True))


def coded(pair, d=5, seed=0):
    """Codes under one name in both."""
    rng = np.random.default_rng(seed)
    for adata in pair:
        adata.obsm["X_code"] = rng.normal(size=(adata.n_obs, d)).astype(np.float32)
    return pair


@pytest.mark.parametrize("weights", ["cosine", "softmax", "uniform"])
@pytest.mark.parametrize("dense", [False, True])
def test_is_the_literal_loop(pair, weights, dense, monkeypatch):
    query, reference = coded(pair)
    query.obsm["X_other"] = query.obsm.pop("X_code")
    values = log_normalised(reference)
    if dense:
        reference.layers["log"] = values
    monkeypatch.setattr("stfuse.tl._predictors_neighbors.BLOCK_BYTES", 4000)  # many blocks
    predicted = stfuse.tl.predict_expression(
        query,
        reference,
        use_rep=("X_other", "X_code"),
        n_neighbors=7,
        weights=weights,
        temperature=0.3,
        layer="log" if dense else None,
        return_std=True,
    )
    mean, std = np.empty((2, query.n_obs, reference.n_vars))
    for i, q in enumerate(query.obsm["X_other"].astype(float)):
        similarity = np.array(
            [q @ r / np.linalg.norm(q) / np.linalg.norm(r) for r in reference.obsm["X_code"].astype(float)]
        )
        near = np.argsort(-similarity)[:7]
        s = similarity[near]
        w = {"cosine": np.maximum(s, 0), "softmax": np.exp(s / 0.3), "uniform": np.ones(7)}[weights]
        mean[i] = np.average(values[near], axis=0, weights=w)
        std[i] = np.sqrt(np.average((values[near] - mean[i]) ** 2, axis=0, weights=w))
    np.testing.assert_allclose(predicted.X, mean, atol=1e-5)
    np.testing.assert_allclose(predicted.layers["std"], std, atol=1e-4)
    np.testing.assert_allclose(query.obs["predicted_uncertainty"], np.sqrt((std**2).mean(1)), atol=1e-4)
    assert not query.obs["predicted_unmatched"].any()
    assert predicted.X.dtype == np.float32
    assert query.uns["predicted"]["unit"].startswith("values of layers['log']" if dense else "log1p of counts")


def test_weights_by_hand():
    similarity = np.array([[0.6, 0.2, -0.3], [0.0, -0.1, -0.4], [-0.2, -0.3, -0.9]])
    weights, unmatched = neighbor_weights(similarity, "cosine")
    np.testing.assert_allclose(weights, [[0.75, 0.25, 0], [1 / 3] * 3, [1 / 3] * 3])
    np.testing.assert_array_equal(unmatched, [False, True, True])
    np.testing.assert_allclose(neighbor_weights(similarity[:1], "uniform")[0], [[1 / 3] * 3])
    weights, _ = neighbor_weights(np.array([[1.0, 0.9]]), "softmax", 0.1)
    np.testing.assert_allclose(weights[0, 0] / weights[0, 1], np.e)


def test_spots_that_nothing_resembles_are_marked(pair):
    query, reference = pair
    reference.obsm["X_code"] = np.tile([1.0, 0], (reference.n_obs, 1))
    query.obsm["X_code"] = np.where(np.arange(query.n_obs)[:, None] < 3, [-1.0, 0], [1.0, 0.5])
    with pytest.warns(UserWarning, match="3 of 80 observations of the query have no neighbour with a positive"):
        predicted = stfuse.tl.predict_expression(query, reference, use_rep="X_code", n_neighbors=4)
    np.testing.assert_array_equal(query.obs["predicted_unmatched"], np.arange(80) < 3)
    # all are equally far: the lowest rows
    np.testing.assert_allclose(predicted.X[0], log_normalised(reference)[:4].mean(0), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(_predictors.predictors()))
def test_every_method(pair, name, contents):
    query, reference = pair
    query.obsm["X_image"][:5] = np.nan
    before, untouched = contents(reference), query.X.copy()
    params = QUICK.get(name.removesuffix("-translate"), {})
    call = {"method": name, "method_params": params, "n_neighbors": 10, "library_key": "section", "device": "cpu"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*overflow.*|.*divide.*")
        with pytest.warns(UserWarning, match="5 of 80 observations of the query have no image"):
            predicted = stfuse.tl.predict_expression(query, reference, **call)
    assert predicted.shape == (80, 40) and list(predicted.obs_names) == list(query.obs_names)
    np.testing.assert_array_equal(np.isnan(predicted.X).all(1), np.arange(80) < 5)
    assert np.isfinite(predicted.X[5:]).all()
    np.testing.assert_array_equal(query.layers["predicted"], predicted.X)
    np.testing.assert_array_equal(predicted.obsm["spatial"], query.obsm["spatial"])
    assert (query.X != untouched).nnz == 0
    assert str(contents(reference)) == str(before)
    assert ("predicted_uncertainty" in query.obs) == _predictors.get(name).spread
    query.X = csr_matrix(query.shape, dtype=np.float32)  # expression of the query is not looked at
    query.obsm["X_pca"] = np.zeros_like(query.obsm["X_pca"])
    with pytest.warns(UserWarning, match="no image"):
        again = stfuse.tl.predict_expression(query, reference, **call)
    np.testing.assert_array_equal(again.X, predicted.X)


def test_registered_fusion_methods_are_in_the_table():
    from stfuse._registry import fusions

    table = _predictors.predictors()
    assert {m.name for m in fusions().values() if m.shared} <= set(table)
    assert {"ridge", "image-knn", "mean", "pcca-translate", "cameo-translate"} <= set(table)
    assert "concat" not in table
    assert "n_latent" in table["clip"].options() and "seed" not in table["clip"].options()
    assert table["ridge"].options() == ["alpha", "n_comps", "fit_intercept"]


def test_the_image_tells_something():
    query, reference = halves(n_obs=900, noise=0.3, private_strength=0.3)
    truth = log_normalised(query)
    scores = {}
    for name in ("mean", "pcca", "pcca-translate", "image-knn", "ridge"):
        predicted = stfuse.tl.predict_expression(query, reference, method=name, library_key="section")
        scores[name] = np.nanmean((truth - predicted.X) ** 2)
    assert all(score < 0.9 * scores["mean"] for name, score in scores.items() if name != "mean"), scores


def test_mean_is_the_mean_of_what_has_expression(pair):
    query, reference = pair
    reference.X = reference.X.toarray() * (np.arange(reference.n_obs) >= 10)[:, None]
    predicted = stfuse.tl.predict_expression(query, reference, method="mean", return_std=True)
    values = log_normalised(reference[10:])
    np.testing.assert_allclose(predicted.X[3], values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(predicted.layers["std"][3], values.std(0), rtol=1e-4)


def test_image_neighbours_are_found_as_by_hand(pair):
    query, reference = pair
    predicted = stfuse.tl.predict_expression(
        query, reference, method="image-knn", n_neighbors=3, weights="uniform", method_params={"n_comps": 4}
    )
    scale = StandardScaler().fit(reference.obsm["X_image"])
    axes = PCA(4).fit(scale.transform(reference.obsm["X_image"]))
    q, r = (axes.transform(scale.transform(a.obsm["X_image"])) for a in pair)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, r)]
    near = np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :3]
    np.testing.assert_allclose(predicted.X, log_normalised(reference)[near].mean(1), atol=1e-4)


@pytest.mark.parametrize(("alpha", "n_comps", "intercept"), [(3.0, None, True), ("hest", 6, False), (0, 5, True)])
def test_ridge_is_scikit_learns(pair, alpha, n_comps, intercept):
    query, reference = pair
    params = {"alpha": alpha, "n_comps": n_comps, "fit_intercept": intercept}
    predicted = stfuse.tl.predict_expression(query, reference, method="ridge", method_params=params)
    scale = StandardScaler().fit(reference.obsm["X_image"])
    x, z = (scale.transform(a.obsm["X_image"].astype(float)) for a in (reference, query))
    if n_comps:
        axes = PCA(n_comps).fit(x)
        x, z = axes.transform(x), axes.transform(z)
    expected = Ridge(100 / (x.shape[1] * 40) if alpha == "hest" else alpha, fit_intercept=intercept)
    expected.fit(x, log_normalised(reference))
    np.testing.assert_allclose(predicted.X, expected.predict(z), atol=1e-3)


def test_ridge_with_more_features_than_observations(pair):
    query, reference = pair
    reference = reference[:12].copy()
    predicted = stfuse.tl.predict_expression(query, reference, method="ridge", method_params={"alpha": 2.0})
    scale = StandardScaler().fit(reference.obsm["X_image"])
    expected = Ridge(2.0).fit(scale.transform(reference.obsm["X_image"].astype(float)), log_normalised(reference))
    np.testing.assert_allclose(predicted.X, expected.predict(scale.transform(query.obsm["X_image"])), atol=1e-3)


@pytest.mark.parametrize("dense", [False, True])
def test_penalty_is_the_one_a_grid_search_over_sections_finds(pair, dense):
    query, reference = pair
    values = log_normalised(reference)
    if dense:
        reference.X = values
    stfuse.tl.predict_expression(query, reference, method="ridge", library_key="section")
    x = StandardScaler().fit_transform(reference.obsm["X_image"]).astype(float)
    search = GridSearchCV(Ridge(), {"alpha": PENALTIES}, scoring="neg_mean_squared_error", cv=GroupKFold(2))
    search.fit(x, values, groups=reference.obs["section"].astype(str))
    found = query.uns["predicted"]["found"]
    assert found["alpha"] == search.best_params_["alpha"]
    np.testing.assert_allclose(found["held_out_mse"], -search.cv_results_["mean_test_score"], rtol=1e-4)


def test_one_section_is_cut_into_blocks(pair):
    query, reference = pair
    one = reference[reference.obs["section"] == reference.obs["section"].iloc[0]].copy()
    stfuse.tl.predict_expression(query, one, method="ridge")
    blocks = query.uns["predicted"]["found"]["held_out_mse"]
    del one.obsm["spatial"]
    stfuse.tl.predict_expression(query, one, method="ridge")
    assert not np.allclose(blocks, query.uns["predicted"]["found"]["held_out_mse"])


def test_translation_uses_the_loadings(pair):
    query, reference = pair
    stfuse.pp.rna_features(reference)
    call = {"batch_key": "section", "library_key": "section"}
    predicted = stfuse.tl.predict_expression(query, reference, method="pcca-translate", **call)
    model = stfuse.tl.pcca(reference, **call, return_model=True)
    stfuse.tl.translate(query, model)
    loadings = reference.uns["X_pca"]["loadings"]
    expected = query.obsm["translated_rna"] @ loadings.iloc[:, 1:].to_numpy().T + loadings["mean"].to_numpy()
    np.testing.assert_allclose(predicted[:, loadings.index].X, expected, atol=2e-3)


def test_a_model_gives_what_its_training_here_gives(pair):
    query, reference = pair
    call = {"batch_key": "section", "library_key": "section"}
    trained = stfuse.tl.predict_expression(query, reference, method="clip", method_params={"max_epochs": 2}, **call)
    model = stfuse.tl.clip(reference, max_epochs=2, return_model=True, **call)
    del query.obsm["X_pca"]
    given = stfuse.tl.predict_expression(query, reference, model=model)
    np.testing.assert_allclose(given.X, trained.X, atol=1e-4)
    query.obsm["X_q"] = model.codes(query).image
    unit = {
        v: reference.obsm[f"X_clip_{v}"] / np.linalg.norm(reference.obsm[f"X_clip_{v}"], axis=1)[:, None] for v in VIEWS
    }
    for view, code in {"both": unit["image"] + unit["rna"], **unit}.items():
        reference.obsm["X_r"] = code
        named = stfuse.tl.predict_expression(query, reference, use_rep=("X_q", "X_r"))
        given = stfuse.tl.predict_expression(query, reference, model=model, reference_view=view)
        np.testing.assert_allclose(named.X, given.X, atol=1e-4)
        again = stfuse.tl.predict_expression(
            query, reference, method="clip", method_params={"max_epochs": 2}, reference_view=view, **call
        )
        np.testing.assert_allclose(again.X, given.X, atol=1e-4)
    assert query.uns["predicted"]["params"]["reference_view"] == view


def test_a_reference_without_images_of_some_or_all(pair):
    """Of such an observation its RNA code is all there is."""
    query, reference = pair
    model = stfuse.tl.clip(reference, max_epochs=2, return_model=True, library_key="section")
    by_rna = stfuse.tl.predict_expression(query, reference, model=model, reference_view="rna")
    bare = reference.copy()
    del bare.obsm["X_image"]
    np.testing.assert_allclose(stfuse.tl.predict_expression(query, bare, model=model).X, by_rna.X, atol=1e-5)
    bare.obsm["X_image"] = np.where(np.arange(bare.n_obs)[:, None] < 50, reference.obsm["X_image"], np.nan)
    some = stfuse.tl.predict_expression(query, bare, model=model)
    query.obsm["X_q"] = model.codes(query).image
    image, rna = (code / np.linalg.norm(code, axis=1)[:, None] for code in (model.codes().image, model.codes().rna))
    bare.obsm["X_r"] = rna + np.where(np.arange(bare.n_obs)[:, None] < 50, image, 0)
    expected = stfuse.tl.predict_expression(query, bare, use_rep=("X_q", "X_r"))
    np.testing.assert_allclose(some.X, expected.X, atol=1e-4)
    with pytest.raises(KeyError, match=r"no obsm\['X_image'\]"):
        del bare.obsm["X_image"]
        stfuse.tl.predict_expression(query, bare, model=model, reference_view="image")


def test_a_query_without_coordinates_needs_no_neighbours(pair):
    query, reference = pair
    call = {"method": "umpire", "library_key": "section"}
    beside = stfuse.tl.predict_expression(query, reference, method_params=QUICK["umpire"], **call)
    own = stfuse.tl.predict_expression(query, reference, method_params=QUICK["umpire"] | {"context": False}, **call)
    assert not np.allclose(beside.X, own.X, atol=1e-3)
    del query.obsm["spatial"]
    without = stfuse.tl.predict_expression(query, reference, method_params=QUICK["umpire"], **call)
    np.testing.assert_allclose(without.X, own.X, atol=1e-5)
    with pytest.raises(ValueError, match=r"trained with neighbour context, so it needs obsm\['spatial'\]"):
        stfuse.tl.predict_expression(query, reference, method_params={"context": True, "max_epochs": 1}, **call)


def test_a_query_of_one_section_needs_no_column(pair):
    query, reference = pair
    with_column = stfuse.tl.predict_expression(query, reference, method="pcca", library_key="section")
    del query.obs["section"]
    without = stfuse.tl.predict_expression(query, reference, method="pcca", library_key="section")
    np.testing.assert_allclose(without.X, with_column.X, atol=1e-5)


@pytest.mark.parametrize("method", ["image-knn", "ridge"])
def test_batches_are_centred(pair, method):
    query, reference = pair
    call = {"method": method, "batch_key": "section", "library_key": "section"}
    plain = stfuse.tl.predict_expression(query, reference, **call)
    query.obsm["X_image"] += 5  # of a batch that the reference lacks
    reference.obsm["X_image"][(reference.obs["section"] == reference.obs["section"].iloc[0]).to_numpy()] -= 3
    np.testing.assert_allclose(stfuse.tl.predict_expression(query, reference, **call).X, plain.X, atol=1e-3)


def test_genes_and_names(pair):
    query, reference = pair
    query = query[:, ::-1].copy()[:, :30].copy()
    query.var_names = [*query.var_names[:29], "foreign"]
    genes = [*reference.var_names[5:1:-1], query.var_names[0]]
    call = {"method": "image-knn", "n_neighbors": 5}
    predicted = stfuse.tl.predict_expression(query, reference, genes=genes, **call)
    assert list(predicted.var_names) == genes
    everything = stfuse.tl.predict_expression(query, reference, key_added="all", **call)
    np.testing.assert_allclose(everything[:, genes].X, predicted.X, rtol=1e-6)
    layer = pd.DataFrame(query.layers["predicted"], query.obs_names, query.var_names)
    shared = [g for g in genes if g in query.var_names]
    np.testing.assert_array_equal(layer[shared], predicted[:, shared].X)
    assert layer.drop(columns=shared).isna().to_numpy().all()
    assert np.isnan(query[:, "foreign"].layers["all"]).all() and np.isfinite(query.layers["all"]).sum() == 29 * 80


def test_a_query_without_genes(pair):
    query, reference = pair
    bare = ad.AnnData(obs=query.obs, obsm={"X_image": query.obsm["X_image"]})
    predicted = stfuse.tl.predict_expression(bare, reference, method="image-knn")
    assert predicted.n_vars == 40 and "predicted" not in bare.layers and "predicted_uncertainty" in bare.obs


def test_other_names_are_told_of(pair):
    query, reference = pair
    stfuse.tl.predict_expression(query, reference, method="mean")
    query.var_names = [f"ENSG{i}" for i in range(40)]
    with pytest.warns(UserWarning, match="None of the query's 40 var_names .*ENSG0"):
        stfuse.tl.predict_expression(query, reference, method="mean")
    assert "predicted" not in query.layers


def test_another_run_replaces_all_of_the_last(pair):
    query, reference = pair
    stfuse.tl.predict_expression(query, reference, method="image-knn")
    assert {"predicted_uncertainty", "predicted_unmatched"} <= set(query.obs)
    _, changed = stfuse.tl.predict_expression(query, reference, method="ridge", copy=True)
    assert query.uns["predicted"]["method"] == "image-knn"
    assert changed.uns["predicted"]["method"] == "ridge"
    assert not {"predicted_uncertainty", "predicted_unmatched"} & set(changed.obs)


def test_mudata(pair):
    query, reference = pair
    plain = stfuse.tl.predict_expression(query, reference, method="pcca", n_neighbors=5)

    def split(adata):
        image = ad.AnnData(obs=adata.obs[[]], obsm={"X_image": adata.obsm["X_image"], "spatial": adata.obsm["spatial"]})
        rna = ad.AnnData(adata.X, obs=adata.obs[[]], var=adata.var, obsm={"X_pca": adata.obsm["X_pca"]})
        return mudata.MuData({"image": image, "rna": rna[::-1].copy()})

    one, both = split(query), split(reference)
    one = mudata.MuData({"image": one["image"]})
    predicted = stfuse.tl.predict_expression(one, both, method="pcca", n_neighbors=5)
    predicted = predicted[plain.obs_names]
    np.testing.assert_allclose(predicted.X, plain.X, atol=1e-3)
    assert "predicted_uncertainty" in one.obs and one.uns["predicted"]["method"] == "pcca"


def test_written_and_read(pair, tmp_path):
    query, reference = pair
    predicted = stfuse.tl.predict_expression(query, reference, method="ridge", method_params={"n_comps": 5})
    for name, adata in (("query", query), ("predicted", predicted)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        back = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        assert back.uns["predicted"]["params"]["method_params"]["n_comps"] == 5
        assert back.uns["predicted"]["found"]["alpha"] > 0


BAD = {
    "reference view": ({"reference_view": "fused"}, ValueError, "reference_view must be one of 'both', 'image', 'rna'"),
    "unknown method": ({"method": "umpir"}, ValueError, "Unknown method 'umpir'.*There is: .*cameo.*image-knn.*umpire"),
    "unknown option": ({"method_params": {"alphas": 1}}, ValueError, "no 'alphas'. Did you mean 'alpha'"),
    "bad penalty": ({"method_params": {"alpha": "best"}}, ValueError, "alpha must be 'cv', 'hest' or a number"),
    "model and codes": ({"model": 1, "use_rep": "X_image"}, ValueError, "not both"),
    "no model": ({"model": 1}, TypeError, "model must be a trained stfuse model"),
    "method and codes": (
        {"method": "pcca", "use_rep": "X_image"},
        ValueError,
        "method='pcca' is trained here: leave it out",
    ),
    "options of codes": ({"use_rep": "X_image", "method_params": {"a": 1}}, ValueError, "method_params belong"),
    "no such code": ({"use_rep": "X_none"}, KeyError, "The query lacks a code. No obsm..X_none"),
    "unequal codes": ({"use_rep": ("X_image", "X_pca")}, ValueError, "16 columns, those of the reference 30"),
    "spread of a line": ({"return_std": True}, ValueError, "needs neighbours, and method='ridge' has none"),
    "weights": ({"weights": "sum"}, ValueError, "weights must be one of 'cosine', 'softmax', 'uniform'"),
    "temperature": ({"temperature": 0}, ValueError, "temperature must be a number above 0"),
    "neighbours": ({"method": "image-knn", "n_neighbors": 161}, ValueError, "n_neighbors=161 is more than the 160"),
    "no neighbours": ({"n_neighbors": 0}, ValueError, "n_neighbors must be"),
    "genes": ({"genes": ["gene_1", "BRCA1"]}, KeyError, "are not in var_names of the reference"),
    "genes as text": ({"genes": "gene_1"}, TypeError, r"use \['gene_1'\]"),
    "layer": ({"layer": "counts"}, KeyError, "The reference has no layer 'counts'"),
    "image key": ({"image_key": "X_uni"}, KeyError, "has no obsm..X_uni.*with image features"),
    "batches": ({"batch_key": "donor"}, KeyError, "No obs column 'donor'"),
    "sections": ({"library_key": "slide"}, KeyError, "No obs column 'slide'"),
    "target": ({"key_added": "X_image"}, ValueError, "would overwrite what is read as image_key"),
    "slash": ({"key_added": "a/b"}, ValueError, "holds a slash"),
    "device": ({"method": "image-knn", "device": "gpu7"}, ValueError, "device must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(pair, case, contents):
    query, reference = pair
    arguments, error, message = BAD[case]
    before = contents(query)
    own = {"model", "use_rep"} & set(arguments)
    with pytest.raises(error, match=message):
        stfuse.tl.predict_expression(query, reference, **({} if own else {"method": "ridge"}) | arguments)
    assert str(contents(query)) == str(before)


def _no_image(query, reference):
    del query.obsm["X_image"]


def _no_image_at_all(query, reference):
    query.obsm["X_image"][:] = np.nan


def _no_rna(query, reference):
    reference.X = csr_matrix(reference.shape, dtype=np.float32)


def _negative(query, reference):
    reference.X = reference.X.toarray() - 3


def _missing(query, reference):
    reference.X = reference.X.toarray()
    reference.X[3, 4] = np.nan


def _query_genes(query, reference):
    query.var_names = ["g"] * 40


def _reference_genes(query, reference):
    reference.var_names = ["g"] * 40


def _query_names(query, reference):
    query.obs_names = ["a"] * query.n_obs


def _width(query, reference):
    query.obsm["X_image"] = query.obsm["X_image"][:, :5]


def _encoders(query, reference):
    query.uns["X_image"], reference.uns["X_image"] = {"encoder": "uni"}, {"encoder": "conch"}


def _taken(query, reference):
    query.layers["predicted"] = np.zeros(query.shape)


def _column_taken(query, reference):
    query.obs["predicted_uncertainty"] = 1.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_image, r"no obsm\['X_image'\] and no image in uns"),
        (_no_image_at_all, "No observation of the query has image features"),
        (_no_rna, "No observation of the reference has expression"),
        (_negative, "X of the reference holds negative whole numbers"),
        (_missing, "X of the reference has missing or infinite"),
        (_query_genes, "var_names of the query are not unique"),
        (_reference_genes, "var_names of the reference are not unique"),
        (_query_names, "obs_names of the query are not unique"),
        (_width, "5 features in the query and 16 in the reference"),
        (_encoders, "encoder 'uni' in the query and by 'conch' in the reference"),
        (_taken, r"would overwrite layers\['predicted'\]"),
        (_column_taken, r"would overwrite obs\['predicted_uncertainty'\]"),
    ],
)
def test_bad_data(pair, spoil, message, contents):
    query, reference = pair
    spoil(query, reference)
    before = contents(query)
    with pytest.raises((ValueError, KeyError), match=message):
        stfuse.tl.predict_expression(query, reference, method="image-knn")
    assert str(contents(query)) == str(before)


def test_a_reference_without_the_view_of_a_model(pair):
    query, reference = pair
    model = stfuse.tl.pcca(reference, return_model=True)
    del reference.obsm["X_pca"]
    with pytest.raises(KeyError, match="The reference has no obsm..X_pca.*rna_features"):
        stfuse.tl.predict_expression(query, reference, model=model)
    concat = stfuse.tl.concat(query, return_model=True)
    with pytest.raises(ValueError, match="Concat has no codes that both views share"):
        stfuse.tl.predict_expression(query, query.copy(), model=concat)


def test_values_that_are_no_logarithms_are_told_of(pair):
    query, reference = pair
    reference.X = reference.X.toarray() * 1.5
    with pytest.warns(UserWarning, match="no counts: they are taken as they are"):
        predicted = stfuse.tl.predict_expression(query, reference, method="mean")
    np.testing.assert_allclose(predicted.X[0], reference.X.mean(0), rtol=1e-5)
    assert query.uns["predicted"]["unit"] == "values of X"


def test_image_features_that_are_made_are_written():
    adata = stfuse.datasets.mob()
    adata = adata[np.r_[:30, 400:430]].copy()
    query, reference = adata[:30].copy(), adata[30:].copy()
    query.uns["spatial"] = {"MOB1": query.uns["spatial"]["MOB1"]}
    reference.uns["spatial"] = {"MOB2": reference.uns["spatial"]["MOB2"]}
    predicted = stfuse.tl.predict_expression(query, reference, method="image-knn", n_neighbors=5)
    assert np.isfinite(predicted.X).all() and query.obsm["X_image"].shape[0] == 30
    assert "X_image" not in reference.obsm


def test_a_model_that_reads_crops(pair):
    from torch import nn

    query, reference = pair
    for adata in pair:
        crops = np.tile(adata.obsm["X_image"].reshape(-1, 1, 4, 4), (1, 3, 1, 1)).astype(np.float32)
        adata.obsm["X_crops"] = crops
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    model = stfuse.tl.umpire(
        reference,
        image_key="X_crops",
        image_encoder=encoder,
        mode="finetune",
        embed_dim=8,
        max_epochs=1,
        device="cpu",
        return_model=True,
    )
    bare = ad.AnnData(obs=query.obs, obsm={"X_crops": query.obsm["X_crops"]})
    predicted = stfuse.tl.predict_expression(bare, reference, model=model, n_neighbors=5, device="cpu")
    bare.obsm["X_q"] = model.codes(bare).image
    reference.obsm["X_r"] = reference.obsm["X_umpire_image"] + reference.obsm["X_umpire_rna"]
    named = stfuse.tl.predict_expression(bare, reference, use_rep=("X_q", "X_r"), n_neighbors=5, device="cpu")
    np.testing.assert_allclose(predicted.X, named.X, atol=1e-4)


def test_sections_of_a_query_that_the_reference_knows_nothing_of():
    """Neighbours are looked for inside a section, also where only the object says that there are several."""
    adata = stfuse.datasets.synthetic_tissue(240, 3, n_genes=40, n_image_features=16, seed=1)
    adata.obs["library_id"] = adata.obs.pop("section").astype(str)
    names = adata.obs["library_id"].unique()
    for name in names:
        rows = (adata.obs["library_id"] == name).to_numpy()
        adata.obsm["spatial"][rows] -= adata.obsm["spatial"][rows].min(0)
    reference = adata[adata.obs["library_id"] == names[0]].copy()
    query = adata[adata.obs["library_id"] != names[0]].copy()
    query.uns["spatial"] = {name: {} for name in names[1:]}
    model = stfuse.tl.umpire(reference, max_epochs=1, embed_dim=16, return_model=True)
    together = stfuse.tl.predict_expression(query, reference, model=model, n_neighbors=10)
    for name in names[1:]:
        rows = (query.obs["library_id"] == name).to_numpy()
        alone = query[rows].copy()
        del alone.uns["spatial"]
        apart = stfuse.tl.predict_expression(alone, reference, model=model, n_neighbors=10)
        np.testing.assert_allclose(together.X[rows], apart.X, atol=1e-4)
    np.testing.assert_allclose(model_codes(model, query, "image", "query", None), model.codes(query).image, atol=1e-5)
    del query.uns["spatial"]
    with pytest.warns(UserWarning, match="lie exactly where another one lies"):
        stfuse.tl.predict_expression(query, reference, model=model, n_neighbors=10)


def test_image_features_beside_the_modalities(pair):
    query, reference = pair
    model = stfuse.tl.clip(reference, max_epochs=2, return_model=True, library_key="section")
    expected = stfuse.tl.predict_expression(query, reference, model=model)
    image = reference[:, :0].copy()
    rna = reference.copy()
    for modality in (image, rna):
        del modality.obsm["X_image"]
    both = mudata.MuData({"image": image, "rna": rna})
    both.obs["section"] = reference.obs["section"]
    both.obsm["X_image"] = reference.obsm["X_image"]
    found = stfuse.tl.predict_expression(query, both, model=model)
    np.testing.assert_allclose(found[:, expected.var_names].X, expected.X, atol=1e-4)
    assert found.uns["predicted"]["params"]["reference_view"] == "both"
    nothing = reference.copy()
    nothing.obsm["X_image"][:] = np.nan
    bare = reference.copy()
    del bare.obsm["X_image"]
    by_rna = [stfuse.tl.predict_expression(query, r, model=model) for r in (nothing, bare)]
    np.testing.assert_allclose(by_rna[0].X, by_rna[1].X, atol=1e-5)
    assert by_rna[0].uns["predicted"]["params"]["reference_view"] == "rna"


def test_nothing_is_left_of_an_earlier_run(pair):
    query, reference = pair
    stfuse.tl.predict_expression(query, reference, method="image-knn")
    later = stfuse.tl.predict_expression(query, reference, method="ridge")
    assert not {"predicted_uncertainty", "predicted_unmatched"} & {*later.obs, *query.obs}
    assert "reference_view" not in later.uns["predicted"]["params"]


def test_the_record_says_what_was_found(pair):
    query, reference = pair
    del query.obsm["spatial"]
    call = {"method_params": QUICK["umpire"], "library_key": "section", "approximate": False}
    found = stfuse.tl.predict_expression(query, reference, **call).uns["predicted"]
    assert found["found"]["library_key"] == "section" and found["found"]["context"] is False
    assert found["found"]["report"]["penalty"] > 0
    assert found["params"]["approximate"] is False


def test_encoders_are_trained_first(pair):
    with pytest.raises(ValueError, match="method_params of 'umpire' has no 'image_encoder'"):
        stfuse.tl.predict_expression(*pair, method_params={"image_encoder": None})


def test_a_query_that_is_in_the_reference(pair):
    query, reference = pair
    with pytest.warns(UserWarning, match="80 observations of the query are in the reference too.*from themselves"):
        stfuse.tl.predict_expression(query, ad.concat([query, reference]), method="image-knn", n_neighbors=5)
    with pytest.warns(UserWarning, match="80 observations"):
        stfuse.tl.predict_expression(query, query, method="image-knn", n_neighbors=5)
    query.obs_names = reference.obs_names[:80]  # the same names of other spots are no offence
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stfuse.tl.predict_expression(query, reference, method="image-knn", n_neighbors=5)


def test_hardly_a_gene_in_common(pair):
    query, reference = pair
    query.var_names = [query.var_names[0], *query.var_names[1:].str.upper()]
    with pytest.warns(UserWarning, match="Only 1 of the query's 40 var_names are predicted genes"):
        stfuse.tl.predict_expression(query, reference, method="image-knn", n_neighbors=5)


def test_scaled_expression_is_told(pair):
    query, reference = pair
    reference.X = log_normalised(reference) - 3.3
    with pytest.warns(UserWarning, match="X of the reference holds negative values, as scaled expression does"):
        stfuse.tl.predict_expression(query, reference, method="image-knn", n_neighbors=5)


def test_crops_of_unlike_size_are_refused(pair):
    for adata, um in zip(pair, (300.0, 900.0), strict=True):
        adata.uns["X_image"] = {"encoder": "texture", "crop_um": {adata.obs["section"].iloc[0]: um}}
    with pytest.raises(ValueError, match="crops of 300 µm in the query and 900 µm in the reference"):
        stfuse.tl.predict_expression(*pair, method="ridge")
    pair[1].uns["X_image"]["crop_um"] = {"b": 310.0}
    stfuse.tl.predict_expression(*pair, method="ridge")


def test_too_many_neighbours_are_told_before_training(pair, monkeypatch):
    monkeypatch.setattr("stfuse.tl._predictors_fused._trained", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="n_neighbors=161 is more than the 160 observations.*use fewer"):
        stfuse.tl.predict_expression(*pair, n_neighbors=161)


def test_the_prediction_has_the_images_of_the_query():
    query, reference = halves()
    query.uns["spatial"] = {"one": {"images": {"hires": np.ones((4, 4, 3))}, "scalefactors": {}}}
    predicted = stfuse.tl.predict_expression(query, reference, method="image-knn", n_neighbors=5)
    assert predicted.uns["spatial"]["one"]["images"]["hires"] is query.uns["spatial"]["one"]["images"]["hires"]
