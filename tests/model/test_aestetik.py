"""AESTETIK: what its codes are made of, the published algorithm beside it, and what it refuses."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from sklearn.mixture import BayesianGaussianMixture
from torch.nn import functional as F

import stfuse.train._window_plan as window_plan
from stfuse import _cluster
from stfuse.datasets import synthetic_tissue
from stfuse.model import AESTETIK
from stfuse.module.losses import batch_discrepancy

SMALL = {
    "n_clusters": 3,
    "n_encoders": 1,
    "n_hidden": 8,
    "n_latent": 4,
    "window_size": 3,
    "image_weight": 1.5,
    "clustering": "kmeans",
    "smooth": False,
}
TRAINING = {"max_epochs", "batch_size", "loss", "n_repeats", "lambda_batch", "lr", "seed", "callbacks"}


def make(adata, batch_key=None, library_key=None, **params):
    AESTETIK.setup_anndata(adata, batch_key=batch_key, library_key=library_key)
    return AESTETIK(adata, **SMALL | params)


def fit(adata, batch_key=None, library_key=None, **params):
    train = {"max_epochs": 2, "progress": False, "device": "cpu"} | {
        name: params.pop(name) for name in TRAINING & set(params)
    }
    model = make(adata, batch_key, library_key, **params)
    model.train(**train)
    return model


def square(side=8, n_rna=4, n_image=3, seed=0, n_sections=1):
    """Smooth features and noise on a square lattice; sections share their coordinates."""
    rng = np.random.default_rng(seed)
    row, column = (np.tile(a.ravel(), n_sections) for a in np.mgrid[:side, :side])
    n = len(row)
    adata = AnnData(obs=pd.DataFrame(index=[f"spot{i}" for i in range(n)]))
    adata.obs["section"] = pd.Categorical.from_codes(np.arange(n) // side**2, [f"s{i}" for i in range(n_sections)])
    adata.obsm["spatial"] = np.column_stack([column, row]) * 100.0
    for key, d in (("X_pca", n_rna), ("X_image", n_image)):
        waves = np.sin(np.outer(row, rng.normal(size=d)) + np.outer(column, rng.normal(size=d)))
        adata.obsm[key] = (waves + 0.3 * rng.normal(size=(n, d))).astype(np.float32)
    return adata


def tissue(n=240, **kwargs):
    return synthetic_tissue(n, n_genes=30, n_image_features=12, **kwargs)


@pytest.fixture
def quick_mixture(monkeypatch):
    """For tests that are not about the published clusters, which take seconds."""
    monkeypatch.setattr(_cluster, "bayesian_mixture", _cluster.kmeans)


# -- the code ----------------------------------------------------------------------------------------------------------


def literal_windows(adata, window_size, places):
    """Features scaled to 0..1 around each observation, holes filled by the median of the window, n x cells x d."""
    half, blocks = window_size // 2, []
    at = {(s, *map(int, p)): i for i, (s, p) in enumerate(zip(adata.obs["section"], places, strict=True))}
    for key in ("X_pca", "X_image"):
        x = adata.obsm[key].astype(float)
        x = (x - np.nanmin(x, 0)) / (np.nanmax(x, 0) - np.nanmin(x, 0))
        typical = np.nanmedian(x, axis=0)
        block = np.empty((len(x), window_size**2, x.shape[1]))
        for i, (section, (row, column)) in enumerate(zip(adata.obs["section"], places, strict=True)):
            cells = [
                at.get((section, int(row) + a, int(column) + b))
                for a in range(-half, half + 1)
                for b in range(-half, half + 1)
            ]
            window = np.array([np.full(x.shape[1], np.nan) if c is None else x[c] for c in cells])
            filling = typical if np.isnan(window).all() else np.nanmedian(window, axis=0)
            block[i] = np.where(np.isnan(window), filling, window)
        blocks.append(block)
    return torch.from_numpy(np.concatenate(blocks, 2)).float()


@pytest.mark.parametrize("window_size", [1, 3, 5])
def test_codes_are_those_of_literal_windows(window_size):
    """Sections with holes and missing views, whole and as new data."""
    adata = square(7, n_sections=2)
    adata = adata[np.random.default_rng(1).permutation(98)[:80]].copy()
    adata.obsm["X_image"][:15] = np.nan
    adata.obsm["X_pca"][10:30] = np.nan
    model = fit(adata, library_key="section", window_size=window_size)
    codes = model.get_latent_representation()
    places = adata.obsm["spatial"][:, ::-1] / 100
    with torch.no_grad():
        expected = model.module["network"].encoder(literal_windows(adata, window_size, places)).numpy()
    missing = np.zeros(80, dtype=bool)
    missing[10:15] = True
    assert np.isnan(codes[missing]).all() and codes.dtype == np.float32
    np.testing.assert_allclose(codes[~missing], expected[~missing], atol=1e-5)

    # the nearest center tells the group, and the first center has the most
    centers = next(iter(model.module["centers"])).numpy()
    groups = model.predict()
    nearest = [int(np.argmin([np.linalg.norm(code - center) for center in centers])) for code in codes[~missing]]
    np.testing.assert_array_equal(groups[~missing], nearest)
    assert (groups[missing] == -1).all()
    counts = np.bincount(groups[~missing], minlength=len(centers))
    assert counts[0] == counts.max()


@pytest.mark.parametrize("smooth", [False, True], ids=["as it is", "smooth"])
@pytest.mark.parametrize("batch_key", [None, "section"])
def test_new_data_are_coded_as_they_were_in_training(smooth, batch_key):
    adata = tissue(n_sections=2, missing_image=0.1, missing_rna=0.1)
    model = fit(adata, batch_key, "section", smooth=smooth, window_size=5, n_comps=6)
    codes, groups = model.get_latent_representation(), model.predict()
    assert np.isfinite(codes).all()
    np.testing.assert_array_equal(model.predict(adata.copy()), groups)
    # a section alone is the same section
    alone = np.flatnonzero(adata.obs["section"] == adata.obs["section"].cat.categories[1])
    part = adata[alone].copy()
    np.testing.assert_allclose(model.get_latent_representation(part), codes[alone], atol=2e-5)
    assert (model.predict(part) == groups[alone]).mean() > 0.99
    # the order of observations does not matter
    order = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = adata[order].copy()
    np.testing.assert_allclose(model.get_latent_representation(shuffled), codes[order], atol=2e-5)
    assert (model.predict(shuffled) == groups[order]).mean() > 0.99


@pytest.mark.usefixtures("quick_mixture")
def test_one_new_observation():
    adata = square(8)
    for params in ({}, {"mc_passes": 3}, {"mc_passes": 3, "reference": True, "window_size": 1}):
        model = fit(adata, **params)
        one = adata[:1].copy()
        assert np.isfinite(model.get_latent_representation(one)).all() and model.predict(one).shape == (1,)


@pytest.mark.parametrize("lattice", ["hex", "free"])
def test_the_unit_of_coordinates_does_not_matter(lattice):
    adata = tissue()
    if lattice == "free":
        adata.obsm["spatial"] = np.random.default_rng(0).random((240, 2)) * 1000
    pixels = adata.copy()
    pixels.obsm["spatial"] = pixels.obsm["spatial"] / 0.2125 + [3000, 500]
    one, two = (fit(data, smooth=True, window_size=5).get_latent_representation() for data in (adata, pixels))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_seeds():
    adata = square(8)
    one, same, other = (fit(adata, seed=s, mc_passes=2).get_latent_representation() for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-2)


def test_the_mean_of_passes_does_not_depend_on_what_else_is_coded():
    """It is the code of one pass, up to chance: dropout alone is averaged over."""
    adata = square(8)
    model = fit(adata, mc_passes=2000, max_epochs=5)
    part = adata[:40].copy()
    codes = model.get_latent_representation(part)
    model.params_["mc_passes"] = 0
    once = model.get_latent_representation(part)
    # with one encoder the code is linear in what is dropped
    assert np.abs(codes - once).max() < 0.15 * once.std(0).max()
    np.testing.assert_allclose(once, model.get_latent_representation()[:40], atol=0.5)


def test_history_and_report():
    adata = tissue(n_sections=2)
    model = fit(adata, "section", "section", smooth=True, image_weight=1.0)
    views = ["reconstruction_rna", "triplet_rna", "reconstruction_image", "triplet_image"]
    assert list(model.history) == [*views, "batch"]
    assert all(list(frame.index) == [1, 2] and np.isfinite(frame.to_numpy()).all() for frame in model.history.values())
    assert 0 < model.report_["signal_rna"] < 1 and 0 < model.report_["signal_image"] < 1
    assert model.report_["image_weight"] == 1.0
    model = fit(adata, None, "section", smooth=False, image_weight=0.0)
    assert list(model.history) == views[:2] and "signal_rna" not in model.report_


@pytest.mark.parametrize(
    "params",
    [
        {"smooth": True, "n_comps": 5, "mc_passes": 3},
        {"n_comps": None, "batch_key": "section"},
        {"reference": True, "mc_passes": 4, "window_size": 7},
    ],
    ids=["smooth", "batches", "reference"],
)
@pytest.mark.usefixtures("quick_mixture")
def test_save_and_load(params, tmp_path):
    adata = tissue(n_sections=2, missing_image=0.1)
    model = fit(adata, library_key="section", **params)
    model.save(tmp_path / "model")
    loaded = AESTETIK.load(tmp_path / "model")
    new = tissue(n_sections=2, seed=3)
    for data in (adata, new):
        np.testing.assert_array_equal(loaded.get_latent_representation(data), model.get_latent_representation(data))
        np.testing.assert_array_equal(loaded.predict(data), model.predict(data))
    assert loaded.report_ == pytest.approx(model.report_) and loaded.params_ == model.params_


# -- batches -----------------------------------------------------------------------------------------------------------


def test_codes_of_batches_grow_alike():
    """Half of the features of one section are turned around: no shift that centring would take away."""
    adata = tissue(400, n_sections=2)
    second = (adata.obs["section"] == adata.obs["section"].cat.categories[1]).to_numpy()
    for key in ("X_pca", "X_image"):
        x = adata.obsm[key]
        x[second] = 2.5 * np.abs(x[second])
    batch = torch.from_numpy(second.astype(int))
    found = {}
    for weight in (0.0, 1.0, 30.0):
        model = fit(adata, "section", "section", lambda_batch=weight, max_epochs=30, lr=1e-2, n_comps=6)
        found[weight] = batch_discrepancy(torch.from_numpy(model.get_latent_representation()), batch).item()
        network = model.module["network"]
        assert network.n_batches == 2 and network.decoder.stems[0].in_features == 4 + 2
    assert found[30.0] < 0.4 * found[0.0] and found[30.0] < found[1.0] < found[0.0], found
    without = fit(adata, None, "section").module["network"]
    assert without.n_batches == 0 and without.decoder.stems[0].in_features == 4


def test_one_batch_is_no_batch():
    adata = square(8)
    adata.obs["donor"] = "a"
    model = fit(adata, batch_key="donor")
    assert model.module["network"].n_batches == 0 and "batch" not in model.history


# -- the published algorithm -------------------------------------------------------------------------------------------


def published(state, x, members, hidden, p, training):
    """Codes and rebuilt windows, layer by layer and member by member, from the weights of our network."""
    side = round(x.shape[1] ** 0.5)
    x = x.transpose(1, 2).reshape(len(x), -1, side, side)

    def norm(h, name, part=slice(None)):
        mean, var, weight, bias = (
            state[f"{name}.{k}"][part] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(h, mean.clone(), var.clone(), weight, bias, training=training)

    codes, rebuilt = [], []
    for e in range(members):
        part = slice(e * hidden, (e + 1) * hidden)
        h = F.conv2d(x, state["encoder.conv.weight"][part], state["encoder.conv.bias"][part])
        n_conv, h = h.shape[-1], F.dropout2d(norm(h, "encoder.norm", part), p, training=training)
        h = F.max_pool2d(h.relu(), state["encoder.conv.weight"].shape[-1], stride=3)
        pooled = h.shape[-1]
        codes.append(F.linear(h.flatten(1), state[f"encoder.heads.{e}.weight"], state[f"encoder.heads.{e}.bias"]))
    code = torch.stack(codes).median(0).values
    for e in range(members):
        name = f"decoder.{{}}.{e}"
        h = F.linear(code, state[name.format("stems") + ".weight"], state[name.format("stems") + ".bias"]).relu()
        h = F.interpolate(h.reshape(-1, hidden, pooled, pooled), size=(n_conv, n_conv))
        h = F.dropout2d(h, p, training=training)
        h = F.conv_transpose2d(h, state[name.format("convs") + ".weight"], state[name.format("convs") + ".bias"])
        rebuilt.append(norm(h, name.format("norms")).sigmoid())
    return code, torch.stack(rebuilt).median(0).values.flatten(2).transpose(1, 2)


class Keep(Callback):
    """The network's weights before the first step."""

    def on_train_start(self, trainer, pl_module):
        self.state = {name: value.detach().clone() for name, value in pl_module.module.state_dict().items()}


def spot_array(n_sections=2, seed=3):
    """Places on a hexagonal array as Visium counts them: of the columns of a row every second one is there."""
    adata = square(7, n_sections=n_sections, seed=seed)
    row, column = (np.tile(a.ravel(), n_sections) for a in np.mgrid[:7, :7])
    adata.obs["array_row"], adata.obs["array_col"] = row, 2 * column + row % 2
    adata.obsm["spatial"] = np.column_stack([adata.obs["array_col"] / 2, np.sqrt(0.75) * row]) * 100
    return adata[np.random.default_rng(seed).permutation(adata.n_obs)[: 40 * n_sections]].copy()


def test_the_first_epoch_of_reference_is_the_published_one(monkeypatch):
    """Same weights at the start, same triplets: the same losses, from a re-derivation of every step."""
    adata, keep, seen = spot_array(), Keep(), []
    real = window_plan.draw_triplets

    def record(labels, n_repeats, generator):
        seen.append((labels, real(labels, n_repeats, generator)))
        return seen[-1][1]

    monkeypatch.setattr(window_plan, "draw_triplets", record)
    params = {"n_encoders": 3, "dropout": 0.0, "window_size": 7, "image_weight": 1.0, "mc_passes": 1}
    model = fit(adata, None, "section", reference=True, max_epochs=1, callbacks=[keep], **params)
    windows = literal_windows(adata, 7, adata.obs[["array_row", "array_col"]].to_numpy())
    code, rebuilt = published(keep.state, windows, 3, 8, 0.0, training=True)

    # one batch of all rows, shuffled: the clusters tell which row is which
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    for name, key, columns, (labels, triplets) in zip(
        ("rna", "image"), ("X_pca", "X_image"), (slice(0, 4), slice(4, None)), seen, strict=True
    ):
        mixture = BayesianGaussianMixture(
            n_components=3, covariance_type="tied", init_params="random", max_iter=1000, n_init=10, random_state=0
        )
        expected = mixture.fit_predict(adata.obsm[key].astype(float))
        pairs = set(zip(expected[order].tolist(), labels.tolist(), strict=True))
        assert len(pairs) == len(set(expected)) > 1  # the same groups
        assert triplets.anchor.numel() == 80 * (len(pairs) - 1)
        error = (rebuilt - windows)[..., columns].abs().mean()
        assert model.history[f"reconstruction_{name}"].iloc[0, 0] == pytest.approx(error.item(), abs=1e-5)
        apart = torch.nn.TripletMarginLoss(margin=1.0, p=2)(*(code[order[rows]] for rows in triplets))
        assert model.history[f"triplet_{name}"].iloc[0, 0] == pytest.approx(apart.item(), abs=1e-5)


@pytest.mark.usefixtures("quick_mixture")
def test_the_passes_of_reference_are_the_published_ones():
    """Dropout left on, normalised by the moments of what is coded, mean over passes, within chance."""
    adata, passes = spot_array(), 300
    params = {"n_encoders": 3, "window_size": 7, "mc_passes": passes, "dropout": 0.3}
    model = fit(adata, None, "section", reference=True, max_epochs=3, **params)
    windows = literal_windows(adata, 7, adata.obs[["array_row", "array_col"]].to_numpy())
    state = model.module["network"].state_dict()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([published(state, windows, 3, 8, 0.3, training=True)[0] for _ in range(passes)]).numpy()
    error = draws.std(0) * np.sqrt(2 / passes)
    distance = (model.get_latent_representation() - draws.mean(0)) / error
    assert np.abs(distance).max() < 5 and distance.std() < 1.3
    # one pass without dropout, or the moments of training, are something else
    still = published(state, windows, 3, 8, 0.0, training=True)[0].numpy()
    assert np.abs((still - draws.mean(0)) / error).std() > 2
    # and nothing of the model moved
    np.testing.assert_array_equal(model.get_latent_representation(), model.get_latent_representation())


@pytest.mark.usefixtures("quick_mixture")
def test_reference_sets_what_is_published(monkeypatch):
    calls = []
    monkeypatch.setattr("stfuse.model._aestetik.PUBLISHED_PASSES", 7)
    real = torch.nn.functional.dropout
    adata = square(6)
    model = fit(adata, reference=True, mc_passes=None)
    monkeypatch.setattr(F, "dropout", lambda x, *args: calls.append(x) or real(x, *args))
    model.get_latent_representation()
    assert len(calls) == 7


# -- failures ----------------------------------------------------------------------------------------------------------


class Interrupt(Callback):
    def on_train_batch_end(self, *args):
        raise KeyboardInterrupt


def test_an_interrupt_leaves_the_model_as_it_was():
    adata = square(8)
    model = make(adata, mc_passes=2, smooth=True)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, progress=False, callbacks=[Interrupt()])
    with pytest.raises(RuntimeError, match="not trained yet"):
        model.predict()
    model.train(max_epochs=1, progress=False, seed=1)
    codes, report = model.get_latent_representation(), dict(model.report_)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, progress=False, seed=5, callbacks=[Interrupt()])
    np.testing.assert_array_equal(model.get_latent_representation(), codes)
    assert model.seed_ == 1 and model.report_ == report and len(model.history["triplet_rna"]) == 1


def test_data_that_fail_leave_the_model_as_it_was():
    adata = tissue(n_sections=2)
    model = fit(adata, "section", "section")
    codes = model.get_latent_representation(adata.copy())
    adata.obsm["X_pca"] = adata.obsm["X_pca"][:, :4].copy()
    adata.obsm["X_pca"][5:] = np.nan
    adata.obsm["X_pca"][2:5] = np.nan
    with pytest.raises(ValueError, match=r"n_clusters=3 is more than the 2 observation\(s\) with the RNA view"):
        model.train(max_epochs=1, progress=False)
    new = tissue(n_sections=2)
    np.testing.assert_array_equal(model.get_latent_representation(new), codes)


BAD = {
    "no clusters": ({"n_clusters": 0}, ValueError, "n_clusters must be a whole number of at least 1"),
    "half a cluster": ({"n_clusters": 2.5}, TypeError, "n_clusters must be a whole number"),
    "negative weight": ({"image_weight": -0.1}, ValueError, "image_weight must be a number between 0 and 3.*got -0.1"),
    "large weight": ({"image_weight": 3.5}, ValueError, "image_weight must be a number between 0 and 3"),
    "weight of text": ({"image_weight": "1.5"}, TypeError, "image_weight must be a number"),
    "even window": ({"window_size": 4}, ValueError, "window_size must be odd.*got 4"),
    "no window": ({"window_size": 0}, ValueError, "window_size must be a whole number of at least 1"),
    "window of 2.5": ({"window_size": 2.5}, TypeError, "window_size must be a whole number"),
    "n_comps": ({"n_comps": 0}, ValueError, "n_comps must be a whole number of at least 1 or None"),
    "encoders": ({"n_encoders": 0}, ValueError, "n_encoders must be a whole number of at least 1"),
    "dropout": ({"dropout": 1.0}, ValueError, "dropout must be below 1"),
    "passes": ({"mc_passes": -1}, ValueError, "mc_passes must be a whole number of at least 0 or None"),
    "smooth": ({"smooth": "yes"}, TypeError, "smooth must be True or False"),
    "reference": ({"reference": 1}, TypeError, "reference must be True or False"),
    "clustering": ({"clustering": "leiden"}, ValueError, "clustering must be one of .*'gmm', 'kmeans', got 'leiden'"),
}
BAD_TRAINING = {
    "loss": ({"loss": "huber"}, ValueError, "loss must be one of 'l1', 'mse', got 'huber'"),
    "epochs": ({"max_epochs": 0}, ValueError, "max_epochs must be a whole number of at least 1 or None"),
    "batch": ({"batch_size": 1}, ValueError, "batch_size must be a whole number of at least 2 or None"),
    "repeats": ({"n_repeats": 0}, ValueError, "n_repeats must be a whole number of at least 1"),
    "lambda": ({"lambda_batch": -1}, ValueError, "lambda_batch must be a number of at least 0"),
    "rate": ({"lr": 0}, ValueError, "lr must be a number above 0"),
    "too many clusters": ({}, ValueError, r"n_clusters=37 is more than the 36 observation\(s\) with the image view"),
}


@pytest.mark.parametrize(("params", "error", "words"), BAD.values(), ids=BAD)
def test_bad_parameters(params, error, words):
    with pytest.raises(error, match=words):
        make(square(4), **params)


@pytest.mark.parametrize(("params", "error", "words"), BAD_TRAINING.values(), ids=BAD_TRAINING)
def test_bad_training(params, error, words):
    with pytest.raises(error, match=words):
        fit(square(6), n_clusters=3 if params else 37, **params)


# -- places ------------------------------------------------------------------------------------------------------------


def test_no_coordinates():
    adata = square(6)
    places = adata.obsm.pop("spatial")
    with pytest.raises(ValueError, match=r"no coordinates in obsm\['spatial'\].*window_size=1"):
        fit(adata)
    adata.obsm["spatial"] = np.full((36, 2), np.nan)
    with pytest.raises(ValueError, match="no coordinates"):
        fit(adata)
    adata.obsm["spatial"] = places
    model = fit(adata)
    del adata.obsm["spatial"]
    with pytest.raises(ValueError, match="no coordinates"):
        model.predict(adata)


@pytest.mark.parametrize("smooth", [False, True])
def test_windows_of_one_need_no_coordinates(smooth):
    adata = square(6)
    del adata.obsm["spatial"]
    codes = fit(adata, window_size=1, smooth=smooth).get_latent_representation()
    assert np.isfinite(codes).all() and codes.std(0).max() > 0


@pytest.mark.parametrize("smooth", [False, True])
def test_some_coordinates_missing(smooth):
    """An observation without coordinates has itself, and the others are as if it were not there."""
    adata = square(8)
    adata.obsm["spatial"][:5] = np.nan
    adata.obsm["spatial"][5, 1] = np.nan
    with pytest.warns(UserWarning, match=r"6 observation\(s\) have no coordinates: their windows hold nothing but"):
        model = fit(adata, smooth=smooth)
    codes = model.get_latent_representation()
    assert np.isfinite(codes).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        np.testing.assert_allclose(model.get_latent_representation(adata[6:].copy()), codes[6:], atol=1e-5)
    changed = adata.copy()
    changed.obsm["X_pca"][3] += 1
    moved = np.abs(model.get_latent_representation(changed) - codes).max(1) > 1e-6
    assert np.flatnonzero(moved).tolist() == [3]


def test_two_spots_on_one_place():
    adata = square(8)
    adata.obsm["spatial"][9] = adata.obsm["spatial"][10]
    with pytest.warns(UserWarning, match=r"1 observation\(s\) share their place.*alone is seen"):
        model = fit(adata)
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("key", ["spatial", "array"])
def test_sections_on_top_of_each_other(key):
    """Seen in the coordinates or, where these are beside each other, in the places on the array."""
    adata = square(6, n_sections=2)
    if key == "array":
        adata.obs["array_row"], adata.obs["array_col"] = adata.obsm["spatial"].T.astype(int)[::-1] // 100
        adata.obsm["spatial"][36:, 0] += 2017
    with pytest.raises(ValueError, match="36 of 72 observations lie where another one lies.*library_key="):
        fit(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = fit(adata, library_key="section")
        # alone they do not interfere
        fit(adata[:36].copy())
    assert np.isfinite(model.get_latent_representation()).all()


def test_who_says_that_it_is_one_section_is_believed():
    adata = square(6, n_sections=2)
    adata.obs["one"] = "a"
    with pytest.warns(UserWarning, match=r"36 observation\(s\) share their place"):
        fit(adata, library_key="one")


def test_a_section_of_one_spot():
    adata = square(6, n_sections=2)[:37].copy()
    codes = fit(adata, library_key="section", smooth=True).get_latent_representation()
    assert np.isfinite(codes).all()


# -- batches of all kinds, views of all kinds --------------------------------------------------------------------------


def test_a_batch_of_one_observation():
    adata = square(6)
    adata.obs["donor"] = ["a"] * 20 + ["b"] * 15 + ["c"]
    with pytest.warns(UserWarning, match="1 batch.es. have fewer than 3 observations.*'c'"):
        model = fit(adata, batch_key="donor")
    assert np.isfinite(model.get_latent_representation()).all()


def test_batches_that_are_sections():
    adata = square(6, n_sections=2)
    with pytest.warns(UserWarning, match="Each batch is one section and each section one batch"):
        fit(adata, "section", "section")
    adata.obs["donor"] = "a"
    adata.obs["half"] = np.where(np.arange(72) % 2, "a", "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(adata, "donor", "section")
        fit(adata, "half", "section")


def test_a_constant_view():
    adata = square(6)
    adata.obsm["X_image"][:] = 2.0
    with pytest.raises(ValueError, match="Every feature of.*image view.*is constant"):
        fit(adata)


def constant_in_each_batch():
    adata = square(6)
    adata.obs["donor"] = np.where(np.arange(36) % 2, "a", "b")
    adata.obsm["X_image"] = np.where(np.arange(36)[:, None] % 2, [[1.0, 2.0]], [[5.0, 3.0]]).astype(np.float32)
    return adata


@pytest.mark.parametrize("smooth", [False, True])
def test_a_view_of_which_nothing_is_left(smooth):
    """Centring within batches takes all of it: one cluster, no weight."""
    adata = constant_in_each_batch()
    with pytest.warns(UserWarning, match="The image view falls into a single cluster: it has no weight"):
        model = fit(adata, "donor", smooth=smooth)
    assert "triplet_rna" in model.history and "triplet_image" not in model.history
    assert np.isfinite(model.get_latent_representation()).all()
    assert all(np.isfinite(value) for value in model.report_.values())


def test_when_that_was_the_only_view_with_a_weight():
    model = fit(constant_in_each_batch(), "donor", image_weight=3.0)
    assert list(model.history)[:2] == ["reconstruction_image", "triplet_image"]
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("image_weight", [0.0, 3.0])
def test_the_ends_of_the_weight(image_weight):
    model = fit(square(6), image_weight=image_weight)
    assert set(model.history) == {
        f"{loss}_{'image' if image_weight else 'rna'}" for loss in ("reconstruction", "triplet")
    }


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    ("n_image", "n_comps"), [(1, 20), (12, 1), (12, 5), (12, None)], ids=["one feature", "one", "five", "all"]
)
def test_widths(n_image, n_comps, smooth):
    adata = square(6, n_image=n_image)
    model = fit(adata, n_comps=n_comps, smooth=smooth)
    width = model.module["network"].encoder.conv.in_channels
    assert width == sum(d if n_comps is None else min(d, n_comps) for d in (4, n_image))
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("clustering", ["judged", "gmm", "kmeans"])
@pytest.mark.parametrize("image_weight", [None, 1.5])
def test_kinds_of_clusters(clustering, image_weight):
    model = fit(square(8), clustering=clustering, image_weight=image_weight, smooth=True, max_epochs=1)
    assert np.isfinite(model.get_latent_representation()).all()
    assert 0 <= model.report_["image_weight"] <= 1.5


@pytest.mark.parametrize("window_size", [1, 3, 5])
@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.usefixtures("quick_mixture")
def test_few_observations(n, window_size, reference):
    """Batches of two at most: no row is left alone, whose moments nothing could be normalised by."""
    adata = square(3)[:n].copy()
    params = {"n_clusters": min(n, 2), "window_size": window_size, "reference": reference, "mc_passes": 2}
    model = fit(adata, batch_size=2, smooth=True, **params)
    assert np.isfinite(model.get_latent_representation()).all()
    assert set(model.predict()) <= {0, 1}


def test_one_cluster_is_no_cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = fit(square(6), n_clusters=1)
    assert (model.history["triplet_rna"] == 0).all().all()
    assert (model.predict() == 0).all()


def test_as_many_clusters_as_observations():
    model = fit(square(3), n_clusters=9, clustering="gmm")
    assert np.isfinite(model.get_latent_representation()).all()
