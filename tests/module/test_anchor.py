import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from stfuse.module.anchor import (
    OTHER,
    AnchorData,
    LinearAnchor,
    Sizes,
    fit_anchor,
    neighbor_mean,
    neighbor_means,
)
from stfuse.module.cameo import AnchoredTranslator
from stfuse.module.scaling import ViewScaler, whiten_rows


def _data(n=300, p=20, q=12, n_pairs=None, missing=0, seed=0, sections=2, spatial=True):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 4))
    image = (shared @ rng.normal(size=(4, p)) + rng.normal(size=(n, p))).astype("f4")
    rna = (shared @ rng.normal(size=(4, q)) + rng.normal(size=(n, q))).astype("f4")
    has_image, has_rna = np.ones(n, bool), np.ones(n, bool)
    has_image[:missing], has_rna[n - missing :] = False, False
    image[~has_image], rna[~has_rna] = np.nan, np.nan
    pairs = np.flatnonzero(has_image & has_rna)[:n_pairs]
    section = np.sort(rng.integers(0, sections, n))
    return AnchorData(image, rna, has_image, has_rna, pairs, section, rng.random((n, 2)) if spatial else None)


@pytest.fixture(scope="module")
def fitted():
    data = _data(missing=20)
    return data, fit_anchor(data)[0]


def _inputs(anchor, data):
    z = {name: anchor.whiten(name, data.of(name)[0]) for name in OTHER}
    near = dict.fromkeys(OTHER)
    if anchor.sizes.context:
        near = {name: neighbor_means(z[name], data.of(name)[1], data.spatial, data.section) for name in OTHER}
    return z, near


def test_neighbor_means_are_those_of_a_literal_loop():
    data = _data(60, missing=15)
    z = torch.from_numpy(np.nan_to_num(data.image))
    z[~torch.from_numpy(data.has_image)] = torch.nan
    found = neighbor_means(z, data.has_image, data.spatial, data.section).numpy()
    for i in np.flatnonzero(data.has_image):
        others = np.flatnonzero((data.section == data.section[i]) & data.has_image)
        others = others[others != i]
        distance = np.linalg.norm(data.spatial[others] - data.spatial[i], axis=1)
        nearest = others[np.argsort(distance)[:6]]
        np.testing.assert_allclose(found[i], z[nearest].numpy().mean(0), atol=1e-5)
    assert np.isnan(found[~data.has_image]).all()


def test_neighbor_mean_in_blocks():
    rng = np.random.default_rng(0)
    z, table = torch.randn(50, 3), rng.integers(0, 50, (50, 6))
    np.testing.assert_allclose(neighbor_mean(z, table, chunk=7), z.numpy()[table].mean(1), atol=1e-6)


def test_fused_basis_is_an_isometry_of_balanced_components(fitted):
    data, anchor = fitted
    both = data.has_image & data.has_rna
    for name in OTHER:
        x, _ = data.of(name)
        part = anchor.view(name)
        r = part.basis.shape[0]
        np.testing.assert_allclose(part.basis.T @ part.basis, np.eye(r), atol=1e-5)
        pcs = part.scaler(torch.from_numpy(x[both])).numpy()[:, :r]
        balanced = part.balanced(anchor.whiten(name, x[both])).numpy()
        np.testing.assert_allclose(pdist(balanced), pdist(pcs) * float(part.balance), rtol=1e-3, atol=1e-5)
        # every view weighs the same: its components together have variance one
        assert balanced.var(0).sum() == pytest.approx(1, abs=0.15)


def test_shared_columns_are_shared_and_private_ones_are_not(fitted):
    data, anchor = fitted
    both = data.has_image & data.has_rna
    k = anchor.sizes.n_shared
    blocks = {name: anchor.view(name).balanced(anchor.whiten(name, data.of(name)[0][both])).numpy() for name in OTHER}
    assert 1 <= k < min(b.shape[1] for b in blocks.values())

    def best(a, b):  # how well a's columns are predicted from b
        a = a - a.mean(0)
        b = np.c_[b, np.ones(len(b))]
        return 1 - ((a - b @ np.linalg.lstsq(b, a)[0]) ** 2).sum() / (a**2).sum()

    assert best(blocks["image"][:, :k], blocks["rna"]) > best(blocks["image"][:, k:], blocks["rna"]) + 0.2


def test_private_columns_stand_in_order_of_variance(fitted):
    data, anchor = fitted
    for name in OTHER:
        block = anchor.view(name).balanced(anchor.whiten(name, data.of(name)[0][data.of(name)[1]])).numpy()
        variances = block[:, anchor.sizes.n_shared :].var(0)
        assert (np.diff(variances) < 1e-4).all()


def test_translation_is_the_regression_on_the_code(fitted):
    data, anchor = fitted
    z, near = _inputs(anchor, data)
    both = data.has_image & data.has_rna
    truth = z["rna"].numpy()[both]
    guess = anchor.translate("image", z["image"], near["image"]).numpy()[both]
    r2 = 1 - ((truth - guess) ** 2).sum(0) / (truth**2).sum(0)
    assert r2[:2].min() > 0.5  # leading components are the shared ones here
    assert r2.min() > -0.1  # and what cannot be predicted is left at its mean


def test_fit_without_coordinates_has_no_context():
    anchor, report = fit_anchor(_data(spatial=False))
    assert anchor.sizes.context == 0 and report["context"] == 0


def test_coding_without_neighbours_is_refused_where_they_are_needed():
    # a field so smooth that neighbours say more than the spot itself
    rng = np.random.default_rng(0)
    data = _data(400, sections=1)
    field = np.c_[np.sin(6 * data.spatial), np.cos(6 * data.spatial)]
    for name in OTHER:
        x, _ = data.of(name)
        x[:] = field @ rng.normal(size=(4, x.shape[1])) + 2 * rng.normal(size=x.shape)
    anchor, _ = fit_anchor(data)
    assert anchor.sizes.context
    with pytest.raises(ValueError, match="context"):
        anchor.code("image", anchor.whiten("image", data.image), None)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 8), (3, 6), (5, 30)])
def test_narrow_views(p, q):
    data = _data(200, p, q)
    anchor, _ = fit_anchor(data)
    z, near = _inputs(anchor, data)
    for name in OTHER:
        assert torch.isfinite(anchor.code(name, z[name], near[name])).all()
        assert torch.isfinite(anchor.translate(name, z[name], near[name])).all()


@pytest.mark.parametrize("n_pairs", [2, 3, 7, 9, 13])
def test_few_pairs(n_pairs):
    data = _data(100, n_pairs=n_pairs, missing=30)
    anchor, _ = fit_anchor(data)
    z, near = _inputs(anchor, data)
    assert torch.isfinite(anchor.code("image", z["image"], near["image"])[30:]).all()


def test_the_fit_does_not_use_hidden_pairs():
    """What is not among the pairs is used as two rows without a partner: their order must not matter."""
    data = _data(200, n_pairs=60, spatial=False)
    anchor, _ = fit_anchor(data, matching=True)
    rng = np.random.default_rng(3)
    hidden = np.setdiff1d(np.arange(200), data.pairs)
    rna = data.rna.copy()
    rna[hidden] = rna[rng.permutation(hidden)]
    other = AnchorData(data.image, rna, data.has_image, data.has_rna, data.pairs, data.section, None)
    shuffled, _ = fit_anchor(other, matching=True)
    for name in OTHER:
        np.testing.assert_allclose(anchor.view(name).loading.abs(), shuffled.view(name).loading.abs(), atol=1e-2)


def test_state_dict_round_trip(fitted):
    data, anchor = fitted
    empty = LinearAnchor(Sizes(**vars(anchor.sizes)))
    empty.load_state_dict(anchor.state_dict())
    z, near = _inputs(anchor, data)
    for name in OTHER:
        other_z = empty.whiten(name, data.of(name)[0])
        np.testing.assert_array_equal(other_z, z[name])
        np.testing.assert_array_equal(empty.code(name, other_z, near[name]), anchor.code(name, z[name], near[name]))
        np.testing.assert_array_equal(empty.view(name).balanced(z[name]), anchor.view(name).balanced(z[name]))


def test_translator_is_the_anchor_at_the_start(fitted):
    data, anchor = fitted
    module = AnchoredTranslator(anchor, n_hidden=8).eval()
    z, near = _inputs(anchor, data)
    native = {}
    for name in OTHER:
        part = anchor.view(name)
        columns = [z[name]] if near[name] is None else [z[name], (near[name] - part.near_mean) @ part.near_map]
        native[name] = torch.cat(columns, 1)
    for name in OTHER:
        module.fit_context(name, native[name][torch.from_numpy(data.of(name)[1])])
        np.testing.assert_allclose(
            module.encode(name, native[name]).detach(), anchor.code(name, z[name], near[name]), atol=1e-5
        )
        translated, context = module.split(OTHER[name], module.translate(name, native[name]))
        np.testing.assert_allclose(translated.detach(), anchor.translate(name, z[name], near[name]), atol=1e-5)
        assert context.shape[1] == anchor.sizes.context


def test_the_anchor_is_not_trained(fitted):
    module = AnchoredTranslator(fitted[1], n_hidden=8)
    trained = {id(p) for p in module.generator_parameters()}
    assert not trained & {id(p) for p in module.critics.parameters()}
    assert not trained & {id(b) for b in module.anchor.buffers()}
    assert not list(module.anchor.parameters())


def test_scalers_are_fitted_on_rows_that_have_the_view(fitted):
    data, anchor = fitted
    alone = ViewScaler.fit(data.image[data.has_image], np.arange(data.has_image.sum()), 50)
    np.testing.assert_allclose(
        whiten_rows(alone, data.image[data.has_image]), anchor.whiten("image", data.image[data.has_image]), atol=1e-4
    )
