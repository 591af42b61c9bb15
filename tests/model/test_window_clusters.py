"""Clusters that the neighbours' expression judges: against a loop, and where the answer is known."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from stfuse.model._window_clusters import (
    EQUAL,
    ViewFeatures,
    _extended,
    grouped,
    judged_clusters,
    predicted_share,
    section_told,
)


def square_ring(side):
    """The eight neighbours of each place of a square."""
    row, column = (a.ravel() for a in np.mgrid[:side, :side])
    out = []
    for a, b in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]:
        inside = (row + a >= 0) & (row + a < side) & (column + b >= 0) & (column + b < side)
        out.append(np.where(inside, (row + a) * side + column + b, -1))
    return np.column_stack(out)


def literal_share(labels, values, neighbors):
    known, predicted = [], []
    for row, around in enumerate(neighbors):
        around = [o for o in around if o >= 0 and labels[o] >= 0]
        if labels[row] >= 0 and around:
            known.append(values[row])
            predicted.append(np.mean([values[labels == labels[o]].mean(0) for o in around], axis=0))
    known, predicted = np.array(known), np.array(predicted)
    found = []
    for j in range(values.shape[1]):
        constant = np.ptp(predicted[:, j]) < 1e-12
        found.append(0 if constant else max(np.corrcoef(known[:, j], predicted[:, j])[0, 1], 0) ** 2)
    return np.mean(found)


@pytest.mark.parametrize("seed", range(4))
def test_predicted_share_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    neighbors = square_ring(9)
    neighbors[rng.random(neighbors.shape) < 0.3] = -1
    values, labels = rng.normal(size=(81, 3)), rng.integers(-1, 3, 81)
    values[:, 0] += np.arange(81) / 30
    found = predicted_share(labels, values, neighbors)
    assert found == pytest.approx(literal_share(labels, values, neighbors), abs=1e-10)


def test_predicted_share_where_nothing_can_be_said():
    values, labels = np.random.default_rng(0).normal(size=(81, 2)), np.zeros(81, dtype=int)
    assert predicted_share(labels, values, square_ring(9)) == 0  # one group predicts nothing
    assert predicted_share(labels, values, np.full((81, 8), -1)) == 0
    assert predicted_share(np.full(81, -1), values, square_ring(9)) == 0


def domains(image_tells, side=24, seed=0):
    """Three stripes in the expression; the image shows them, or stripes the other way."""
    rng = np.random.default_rng(seed)
    row, column = (a.ravel() for a in np.mgrid[:side, :side])
    truth, other = row * 3 // side, column * 3 // side
    centers = 3 * rng.normal(size=(2, 3, 4))
    rna = centers[0][truth] + rng.normal(size=(side**2, 4))
    image = centers[1][truth if image_tells else other] + rng.normal(size=(side**2, 4))
    has = np.ones(side**2, dtype=bool)
    return truth, ViewFeatures(rna, rna, has), ViewFeatures(image, image, has), square_ring(side)


def test_the_weight_of_an_image_follows_what_it_tells():
    truth, *told = domains(True)
    labels, of_image, weight, report = judged_clusters(*told, 3, 0)
    assert weight == pytest.approx(EQUAL, rel=0.1)
    for found in (labels, of_image):
        assert len(set(zip(found.tolist(), truth.tolist(), strict=True))) == 3
    _, *untold = domains(False)
    labels, _, weight, report = judged_clusters(*untold, 3, 0)
    assert weight < 0.2 and report["predicted_image"] < 0.1 < report["predicted_rna"]
    best = max(value for name, value in report.items() if name != "predicted_image")
    assert report["predicted_rna"] == pytest.approx(best, rel=0.02)
    assert adjusted_rand_score(truth, labels) > 0.9


def test_rows_without_a_view():
    truth, rna, image, ring = domains(True)
    has = np.random.default_rng(0).random((2, 576)) > 0.3
    rna, image = (
        ViewFeatures(*(np.where(has[i][:, None], view.raw, np.nan) for _ in range(2)), has[i])
        for i, view in enumerate((rna, image))
    )
    labels, of_image, weight, report = judged_clusters(rna, image, ring, 3, 0)
    assert 0 < weight <= EQUAL and all(np.isfinite(value) for value in report.values())
    np.testing.assert_array_equal(of_image >= 0, has[1])
    # without an image too, whether or not the clusters are those of both views
    np.testing.assert_array_equal(labels >= 0, has[0])
    assert adjusted_rand_score(truth[has[0]], labels[has[0]]) > 0.9


def test_without_neighbours_both_views_count_alike():
    _, rna, image, _ = domains(True, side=6)
    _, _, weight, report = judged_clusters(rna, image, np.empty((36, 0), dtype=np.int32), 3, 0)
    assert weight == EQUAL and not report


def test_grouped():
    values = np.arange(12.0).reshape(6, 2)
    rows = np.array([True, True, False, True, True, False])
    found = grouped(values, rows, lambda there: np.where(there[:, 0] > 4, 7, 2))
    np.testing.assert_array_equal(found, [0, 0, -1, 1, 1, -1])
    # rows that are all alike are one cluster, which nobody has to look for
    found = grouped(np.ones((6, 2)), rows, lambda there: pytest.fail("not to be called"))
    np.testing.assert_array_equal(found, np.where(rows, 0, -1))


def test_section_told():
    section = np.repeat([0, 1], 50)
    assert section_told(section, section) == pytest.approx(1)
    assert section_told(np.tile([0, 1], 50), section) == pytest.approx(0, abs=1e-12)
    assert section_told(section, None) == section_told(section, np.zeros(100, int)) == 0
    # rows without a group say nothing; three of four groups are of one section
    half = np.array([0, 1, 1, 2, -1, -1])
    assert section_told(half, np.array([0, 0, 1, 1, 0, 1])) == pytest.approx(0.5)


def test_groups_that_are_sections_predict_nothing():
    rng = np.random.default_rng(0)
    ring = np.vstack([square_ring(9), np.where(square_ring(9) < 0, -1, square_ring(9) + 81)])
    section = np.repeat([0, 1], 81)
    values = rng.normal(size=(162, 3)) + 10 * section[:, None]
    assert predicted_share(section, values, ring) > 0.9
    assert predicted_share(section, values, ring, section) < 1e-6


def test_an_observation_without_an_image_gets_the_joint_cluster_of_its_rna():
    truth, rna, image, ring = domains(True)
    missing = np.arange(len(rna.has)) % 3 == 0
    image = image._replace(has=image.has & ~missing)
    labels, of_image, _, _ = judged_clusters(rna, image, ring, 3, 0)
    assert (labels[rna.has] >= 0).all() and (of_image[missing] == -1).all()


def test_extended_goes_to_the_nearest_mean():
    rng = np.random.default_rng(1)
    truth = np.arange(300) % 3
    values = np.array([[0.0, 0], [6, 0], [0, 6]])[truth] + rng.normal(size=(300, 2))
    labels = np.where(np.arange(300) < 200, truth, -1)
    found = _extended(labels, values, np.arange(300) < 290)
    assert (found[:200] == truth[:200]).all() and (found[290:] == -1).all()
    assert (found[200:290] == truth[200:290]).mean() > 0.98
