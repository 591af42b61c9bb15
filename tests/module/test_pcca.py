import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.cross_decomposition import CCA

from stfuse.module import pcca
from stfuse.module.pcca import Canonical, Design, Problem


def _two_views(n=400, p=6, q=5, rho=(0.9, 0.6), seed=0, turned=True):
    """Two white views whose first columns correlate as told."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    for d, r in enumerate(rho):
        b[:, d] = r * a[:, d] + np.sqrt(1 - r**2) * b[:, d]
    if not turned:
        return a, b
    turn_a, turn_b = (np.linalg.qr(rng.normal(size=(k, k)))[0] for k in (p, q))
    return a @ turn_a, b @ turn_b


def _problem(a, b, pairs, seed=0, near=None):
    n = a.shape[0]
    near_a, near_b = near or (None, None)
    return Problem(a, b, near_a, near_b, np.ones(n, bool), np.ones(n, bool), np.asarray(pairs), seed)


def test_inverse_root():
    a = np.random.default_rng(0).normal(size=(50, 4))
    c = a.T @ a
    w = pcca.inverse_root(c)
    np.testing.assert_allclose(w @ c @ w, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(w, w.T)


def test_shrinkage_cca_by_hand():
    # one column each: correlation is the cross moment over the roots of the shrunk second moments
    a, b = np.array([[1.0], [-1.0], [2.0], [0.0]]), np.array([[2.0], [-1.0], [1.0], [1.0]])
    shrink = 0.8  # 10 / 4, at most 0.8
    va, vb, cross = 0.2 * 6 / 4 + shrink, 0.2 * 7 / 4 + shrink, 5 / 4
    fit = pcca.shrinkage_cca(a, b)
    np.testing.assert_allclose(fit.rho, min(cross / np.sqrt(va * vb), 0.999))
    np.testing.assert_allclose(np.abs(fit.u), 1 / np.sqrt(va))
    np.testing.assert_allclose(np.abs(fit.v), 1 / np.sqrt(vb))


def test_shrinkage_cca_is_cca_when_pairs_are_many():
    a, b = _two_views(20_000)
    fit = pcca.shrinkage_cca(a, b)
    np.testing.assert_allclose(fit.rho[:2], [0.9, 0.6], atol=0.03)
    reference = CCA(2, scale=False).fit(a, b)
    for ours, theirs in zip((a @ fit.u, b @ fit.v), reference.transform(a, b), strict=True):
        for d in range(2):
            assert abs(np.corrcoef(ours[:, d], theirs[:, d])[0, 1]) > 0.999
        np.testing.assert_allclose(ours.var(0), 1, atol=0.03)


def test_log_likelihood_is_the_gaussian_density_ratio():
    rng = np.random.default_rng(0)
    u, v, rho = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), np.array([0.9, 0.5, 0.0])
    ours = pcca.log_likelihood(u, v, rho)
    for i in range(5):
        for j in range(4):
            literal = sum(
                multivariate_normal([0, 0], [[1, r], [r, 1]]).logpdf([u[i, d], v[j, d]])
                - multivariate_normal(0, 1).logpdf(u[i, d])
                - multivariate_normal(0, 1).logpdf(v[j, d])
                # the same for every pair of rows, so left out
                + 0.5 * np.log(1 - r**2)
                for d, r in enumerate(rho)
            )
            assert ours[i, j] == pytest.approx(literal, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), m=st.integers(1, 12), spread=st.floats(0, 3), seed=st.integers(0, 99))
def test_sinkhorn_marginals(n, m, spread, seed):
    score = np.random.default_rng(seed).normal(size=(n, m)) * spread
    plan = pcca.sinkhorn(score, rounds=500)
    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(1), min(1, m / n), rtol=2e-2)
    np.testing.assert_allclose(plan.sum(0), min(1, n / m), rtol=1e-3)


def test_sinkhorn_limits():
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_allclose(pcca.sinkhorn(50.0 * np.eye(8)[order]), np.eye(8)[order], atol=1e-6)
    np.testing.assert_allclose(pcca.sinkhorn(np.zeros((4, 8))), 1 / 8)
    # a constant added to a row or a column changes nothing: only who is preferred counts
    score = np.random.default_rng(1).normal(size=(5, 5))
    shifted = score + np.arange(5)[:, None] - 3 * np.arange(5)
    np.testing.assert_allclose(pcca.sinkhorn(score, 300), pcca.sinkhorn(shifted, 300), atol=1e-4)


def test_honest_rho_is_lower_than_in_sample_on_noise_and_right_on_signal():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 20)), rng.normal(size=(60, 20))
    fit = pcca.shrinkage_cca(*noise)
    honest = pcca.honest_rho(*noise, fit, rng)
    assert fit.rho[0] > 0.5
    assert honest.max() < 0.3
    a, b = _two_views(2000)
    honest = pcca.honest_rho(a, b, pcca.shrinkage_cca(a, b), rng)
    np.testing.assert_allclose(honest[:2], [0.9, 0.6], atol=0.05)
    assert (np.diff(honest) <= 0).all()


def test_weights_grow_with_correlation():
    w = Canonical(np.eye(3), np.eye(3), np.array([0.95, 0.5, 0.0])).weights()
    assert (np.diff(w) < 0).all()
    assert w[1] == pytest.approx(np.sqrt(0.5 / 0.75))
    assert w[2] > 0  # codes are divided by the weights when translating


def _literal_score(query, pool, partner):
    out = []
    for i, own in enumerate(partner):
        cosine = [query[i] @ p / np.linalg.norm(query[i]) / np.linalg.norm(p) for p in pool]
        out.append(np.log(np.mean([c > cosine[own] for c in cosine]) + 0.01))
    return np.array(out)


def test_rank_score_is_the_literal_one():
    rng = np.random.default_rng(0)
    query, pool, partner = rng.normal(size=(9, 4)), rng.normal(size=(30, 4)), rng.permutation(30)[:9]
    np.testing.assert_allclose(pcca.rank_score(query, pool, partner), _literal_score(query, pool, partner))


@pytest.mark.parametrize("value", [np.nan, 0.0, 1.0])
def test_a_useless_code_never_scores_well(value):
    codes = np.full((20, 3), value)
    assert pcca.rank_score(codes[:5], codes, np.arange(5)).min() > np.log(0.9)


def test_matching_finds_hidden_partners():
    rho = (0.95, 0.93, 0.9, 0.9, 0.88, 0.85)
    a, b = _two_views(600, 8, 8, rho)
    few = _problem(a, b, np.arange(20))
    start, matched = (pcca.fit_design(few, Design(8, matching=m)) for m in (False, True))
    new_a, new_b = a[300:], b[300:]

    def recall(fit):
        u, v = fit.codes(new_a, new_b)
        return pcca.rank_score(u, v, np.arange(300)).mean()

    assert recall(matched) < recall(start) - 0.3


def test_matching_with_views_of_different_rows():
    a, b = _two_views(300)
    has_a, has_b = np.ones(300, bool), np.ones(300, bool)
    has_a[:60], has_b[200:] = False, False
    a[~has_a], b[~has_b] = 0, 0
    problem = Problem(a, b, None, None, has_a, has_b, np.arange(60, 90), 0)
    fit = pcca.fit_design(problem, Design(5, matching=True))
    assert np.isfinite(fit.u).all() and np.isfinite(fit.v).all()
    assert (fit.rho <= 0.999).all()


def test_same_seed_same_fit_and_global_state_untouched():
    a, b = _two_views(300)
    problem = _problem(a, b, np.arange(40), seed=5)
    before = np.random.get_state()[1].copy()
    one, two = (pcca.fit_design(problem, Design(5, matching=True), limit=50) for _ in range(2))
    np.testing.assert_array_equal(one.u, two.u)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_choose_rank_needs_pairs_and_prefers_the_default():
    a, b = _two_views(200, 30, 30, (0.9, 0.9, 0.8), turned=False)
    assert pcca.choose_rank(_problem(a, b, np.arange(5)), 12) == (12, {})
    rank, scores = pcca.choose_rank(_problem(a, b, np.arange(150)), 12)
    assert set(scores) == {"rank_8", "rank_12", "rank_16", "rank_24", "rank_30"}
    assert rank <= 16  # the leading three columns are shared: all others are noise


def test_choose_rank_on_narrow_views():
    a, b = _two_views(100, 3, 2, (0.9,))
    assert pcca.choose_rank(_problem(a, b, np.arange(100)), 12) == (2, {})


def test_design_drops_context_that_is_noise_and_keeps_context_that_helps():
    rng = np.random.default_rng(0)
    a, b = _two_views(300, rho=(0.5, 0.4))
    noise = rng.normal(size=(300, 12)), rng.normal(size=(300, 12))
    field = rng.normal(size=(300, 12))
    helps = tuple(field + 0.3 * rng.normal(size=(300, 12)) for _ in range(2))
    chosen, _ = pcca.choose_design(_problem(a, b, np.arange(120), near=helps), 5, True, False)
    assert chosen.context == 12
    chosen, scores = pcca.choose_design(_problem(a, b, np.arange(120), near=noise), 5, True, False)
    assert chosen.context < 12 or scores["context_0_matching_False"] > scores["context_12_matching_False"] - 0.2
    off, _ = pcca.choose_design(_problem(a, b, np.arange(120), near=helps), 5, False, False)
    assert off.context == 0


def test_context_is_never_wider_than_there_are_columns():
    rng = np.random.default_rng(0)
    a, b = _two_views(300)
    near = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    for n in (5, 20, 100):
        chosen, _ = pcca.choose_design(_problem(a, b, np.arange(n), near=near), 5, True, True)
        assert chosen.context in (0, 3)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 12])
def test_few_pairs_give_finite_maps(n):
    a, b = _two_views(100)
    problem = _problem(a, b, np.arange(n))
    rank, _ = pcca.choose_rank(problem, 12)
    design, _ = pcca.choose_design(problem, rank, True, True)
    fit = pcca.fit_design(problem, design)
    assert np.isfinite(fit.u).all() and np.isfinite(fit.v).all() and np.isfinite(fit.rho).all()


def test_products_of_a_part_are_subtracted():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
    rest = (pcca.Products.of(a, b) - pcca.Products.of(a[:20], b[:20])).solve()
    direct = pcca.shrinkage_cca(a[20:], b[20:])
    np.testing.assert_allclose(rest.rho, direct.rho)
    np.testing.assert_allclose(np.abs(rest.u), np.abs(direct.u), atol=1e-8)


def test_large_problems_are_judged_on_a_part():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 3))
    problem = _problem(a, 2 * a, np.arange(0, 300, 2), near=(a + 5, a + 6))
    part = problem.at_most(40)
    assert part.pairs.size == 40 and part.a.shape[0] == 80
    np.testing.assert_array_equal(part.b, 2 * part.a)
    np.testing.assert_array_equal(part.near_a, part.a + 5)
    # pairs are still pairs
    original = [int(np.flatnonzero((a == row).all(1))[0]) for row in part.a[part.pairs]]
    assert all(row % 2 == 0 for row in original)
    assert problem.at_most(300) is problem


def test_scores_are_those_of_pairs_that_were_scored():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(600, 3))
    scores = pcca.held_out_scores(_problem(a, a.copy(), np.arange(600)), pcca.Design(3), limit=60)
    # two repeats of five folds, 30 pairs of each
    assert 150 < scores.size <= 300
    assert scores.max() < np.log(0.02)
