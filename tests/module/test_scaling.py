import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from stfuse.module.scaling import CLIP, StandardViews, ViewScaler, looks_rotated, signal_rank, whiten_rows


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(400, 5)) @ rng.normal(size=(5, 12)) + rng.normal(size=(400, 12)) * 0.3 + 7).astype("f4")


def test_unscaled_is_pca(features):
    rows = np.arange(0, 400, 2)
    scaler = ViewScaler.fit(features, rows, 6, scale=False)
    reference = PCA(6, svd_solver="full").fit(features[rows].astype(float))
    ours, theirs = scaler(torch.from_numpy(features)).numpy(), reference.transform(features.astype(float))
    ours *= np.sign((ours * theirs).sum(0))  # the sign of a component is arbitrary
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(scaler.sd.numpy() ** 2, reference.explained_variance_ * (1 - 1 / rows.size), rtol=1e-4)


def test_scaled_is_standardised_clipped_pca(features):
    scaler = ViewScaler.fit(features, np.arange(400), 6, scale=True)
    clipped = StandardScaler().fit_transform(features.astype(float)).clip(-CLIP, CLIP)
    theirs = PCA(6, svd_solver="full").fit_transform(clipped)
    ours = scaler(torch.from_numpy(features)).numpy()
    ours *= np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_whitened_components_have_unit_variance_and_go_back(features):
    scaler = ViewScaler.fit(features, np.arange(400), 12, scale=False)
    z = scaler.whiten(torch.from_numpy(features))
    np.testing.assert_allclose(np.cov(z.numpy().T, bias=True), np.eye(12), atol=1e-3)
    np.testing.assert_allclose(scaler.inverse(z * scaler.sd).numpy(), features, atol=1e-3)


def test_scaled_goes_back_where_nothing_was_clipped(features):
    scaler = ViewScaler.fit(features, np.arange(400), 12, scale=True)
    inside = (np.abs(StandardScaler().fit_transform(features)) < CLIP - 1e-3).all(1)
    back = scaler.inverse(scaler(torch.from_numpy(features))).numpy()
    assert inside.sum() > 300
    np.testing.assert_allclose(back[inside], features[inside], atol=1e-3)


@pytest.mark.parametrize("unit", [1e-12, 1e-4, 1e6])
@pytest.mark.parametrize("scale", [True, False, None])
def test_unit_of_measurement_does_not_matter(features, unit, scale):
    one = ViewScaler.fit(features, np.arange(400), 5, scale)
    other = ViewScaler.fit(features * np.float32(unit), np.arange(400), 5, scale)
    a = one.whiten(torch.from_numpy(features))
    b = other.whiten(torch.from_numpy(features * np.float32(unit)))
    np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-3)


def test_one_large_feature_does_not_silence_the_others(features):
    features = features.copy()
    features[:, 0] += 1e4
    features[:, 1:] *= 1e-5
    scaler = ViewScaler.fit(features, np.arange(400), 12, scale=True)
    assert scaler.components.abs().sum(1).min() > 0.1


def test_constant_features_are_left_out(features):
    features = features.copy()
    features[:, 3] = 0.1  # no float32 holds it exactly
    scaler = ViewScaler.fit(features, np.arange(400), 12)
    assert scaler.components[3].abs().max() < 1e-12
    assert scaler.sd.numel() == 11
    assert torch.isfinite(scaler.whiten(torch.from_numpy(features))).all()


def test_fewer_rows_than_components(features):
    scaler = ViewScaler.fit(features, np.arange(4), 50)
    assert scaler.sd.numel() <= 3
    assert torch.isfinite(scaler.whiten(torch.from_numpy(features))).all()


def test_looks_rotated():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 10)) + rng.normal(size=(2000, 10)) * 0.2
    assert not looks_rotated(np.cov(x.T))
    assert looks_rotated(np.cov(PCA(8).fit_transform(x).T))
    assert not looks_rotated(np.cov(x.T) * 1e-30)


def test_signal_rank_counts_planted_components():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1000, 4)) * 5 @ np.linalg.qr(rng.normal(size=(60, 4)))[0].T + rng.normal(size=(1000, 60))
    variances = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    assert signal_rank(variances, 1000, 60) == 4


def test_whiten_rows_keeps_missing_rows_and_blocks(features, monkeypatch):
    scaler = ViewScaler.fit(features, np.arange(400), 4)
    whole = whiten_rows(scaler, features).numpy()
    monkeypatch.setattr("stfuse.module.scaling.CHUNK", 7)
    holes = features.copy()
    holes[[0, 8]] = np.nan
    parts = whiten_rows(scaler, holes).numpy()
    assert np.isnan(parts[[0, 8]]).all()
    rest = np.delete(np.arange(400), [0, 8])
    np.testing.assert_allclose(parts[rest], whole[rest], atol=1e-5)


def test_standard_views_are_sklearns(features):
    views = StandardViews(12, 3)
    rows = np.arange(0, 400, 3)
    constant = np.full((400, 3), 0.1, "f4")
    views.fit_moments("image", features, rows)
    views.fit_moments("rna", constant, rows)
    theirs = StandardScaler().fit(features[rows].astype(float)).transform(features.astype(float))
    ours = views.standard("image", torch.from_numpy(features))
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)
    np.testing.assert_allclose(views.features("image", ours).numpy(), features, atol=1e-4)
    np.testing.assert_allclose(views.standard("rna", torch.from_numpy(constant)).numpy(), 0, atol=1e-6)


def test_a_feature_that_was_constant_counts_nowhere(features):
    views = StandardViews(12, 3)
    fitted, later = features.copy(), features.copy()
    fitted[:, 4], later[:, 4] = 2, 1000
    views.fit_moments("image", fitted, np.arange(400))
    assert not views.standard("image", torch.from_numpy(later))[:, 4].any()
    back = views.features("image", views.standard("image", torch.from_numpy(fitted)))
    np.testing.assert_allclose(back.numpy(), fitted, atol=1e-4)
