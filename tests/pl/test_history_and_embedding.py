import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from sklearn.decomposition import PCA

import stfuse
from stfuse.pl._color import PALETTE


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def tissue():
    return stfuse.datasets.synthetic_tissue(200, n_genes=60, seed=1)


def record(adata, history):
    adata.uns["m"] = {"history": history}
    return adata


def test_training_and_held_out_share_a_panel(tissue):
    columns = ["loss_train", "loss_validation", "train_cycle_epoch", "val_cycle_epoch", "critic"]
    history = pd.DataFrame(np.arange(20.0).reshape(4, 5), index=pd.RangeIndex(1, 5, name="epoch"), columns=columns)
    axes = stfuse.pl.history(record(tissue, history), "m")
    assert [ax.get_title() for ax in axes] == ["loss", "cycle", "critic"]
    assert [len(ax.lines) for ax in axes] == [2, 2, 1]
    np.testing.assert_array_equal(axes[0].lines[1].get_ydata(), history["loss_validation"])
    np.testing.assert_array_equal(axes[0].lines[1].get_xdata(), [1, 2, 3, 4])
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["training", "held out"]


def test_dict_of_arrays_and_of_tables(tissue):
    plain = stfuse.pl.history(record(tissue, {"a": np.ones(3), "b": [1.0, 2.0]}), "m")
    assert [len(ax.lines[0].get_ydata()) for ax in plain] == [3, 2]
    tables = {"loss": pd.DataFrame({"loss": [1.0, 2.0]})}
    assert isinstance(stfuse.pl.history(record(tissue, tables), "m"), Axes)


def test_history_of_a_method_after_h5ad(tissue, tmp_path):
    import anndata as ad

    tissue.uns["m"] = {"history": pd.DataFrame({"held_out_rank": [0.3, 0.2], "empty": np.nan}, index=[1, 2])}
    tissue.write_h5ad(tmp_path / "a.h5ad")
    ax = stfuse.pl.history(ad.read_h5ad(tmp_path / "a.h5ad"), "m", save=tmp_path / "a.png")
    assert ax.get_title() == "held-out pairs (lower is better)" and ax.get_ylabel() == "mean log rank fraction"
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("history", "key", "error", "match"),
    [
        (None, "m", ValueError, "closed form"),
        ({}, "m", ValueError, "closed form"),
        (pd.DataFrame({"a": ["x", "y"]}), "m", ValueError, "no numbers"),
        (pd.DataFrame({"a": [1.0]}), "m", ValueError, "one row.*no curve"),
        (pd.DataFrame({"a": [1.0]}), "n", KeyError, "'m'"),
        (pd.DataFrame({"a": [1.0]}), 5, TypeError, "key must be"),
        (pd.DataFrame({"a": [1.0]}), "cameo", KeyError, "'m'"),
        (pd.DataFrame({"a": [1.0]}), "text", KeyError, "'m'"),
    ],
)
def test_no_history(tissue, history, key, error, match):
    tissue.uns["text"] = "cameo"
    with pytest.raises(error, match=match):
        stfuse.pl.history(record(tissue, history), key)


def test_a_method_in_closed_form_has_no_history(tissue):
    stfuse.tl.pcca(tissue)
    with pytest.raises(ValueError, match=r"no curve to draw.*uns\['pcca'\]\['report'\]"):
        stfuse.pl.history(tissue, "pcca")
    assert not plt.get_fignums()


@pytest.mark.parametrize("kept", [0, 2])
def test_the_kept_epoch_is_marked(tissue, kept):
    history = pd.DataFrame({"a": [3.0, 2, 1], "held_out_rank": [3.0, 1, 2]}, index=pd.RangeIndex(1, 4, name="epoch"))
    tissue.uns["m"] = {"history": history, "report": {"epochs_kept": kept}}
    for ax in stfuse.pl.history(tissue, "m"):
        assert [list(line.get_xdata()) for line in ax.lines[1:]] == ([[2, 2]] if kept else [])
        assert [t.get_text() for t in ax.texts] == (["kept"] if kept else [])


def test_a_file_that_cannot_be_written_is_refused_first(tissue, tmp_path):
    record(tissue, {"a": [1.0, 2.0]})
    for draw in (
        lambda save: stfuse.pl.history(tissue, "m", save=save),
        lambda save: stfuse.pl.spatial(tissue, "domain", save=save),
        lambda save: stfuse.pl.embedding(tissue, "X_pca", method="pca", save=save),
    ):
        with pytest.raises(FileNotFoundError, match="no folder.*Make it first"):
            draw(tmp_path / "none" / "a.png")
        with pytest.raises(ValueError, match="saved as .*png"):
            draw(tmp_path / "a.docx")
        with pytest.raises(TypeError, match="save must be a path"):
            draw(5)
    assert not plt.get_fignums()


def test_pca_is_scikit_learns(tissue):
    ax = stfuse.pl.embedding(tissue, "X_pca", "domain", method="pca")
    drawn = np.asarray(ax.collections[0].get_offsets())
    expected = PCA(2, random_state=0).fit_transform(tissue.obsm["X_pca"])
    np.testing.assert_allclose(np.sort(drawn, 0), np.sort(expected, 0), atol=1e-4)
    order = [int(np.argmin(((expected - point) ** 2).sum(1))) for point in drawn]
    colours = dict(zip(tissue.obs["domain"].cat.categories, tissue.uns["domain_colors"], strict=True))
    faces = [to_hex(c) for c in ax.collections[0].get_facecolors()]
    assert faces == [to_hex(colours[d]) for d in tissue.obs["domain"].iloc[order]]


def test_umap_separates_groups_and_leaves_nothing(tissue):
    tissue.obsm["X_c"] = np.repeat(np.eye(4) * 30, 50, axis=0) + np.random.default_rng(0).normal(size=(200, 4))
    tissue.obsm["X_c"][:5] = np.nan
    tissue.obs["group"] = pd.Categorical(np.repeat(list("abcd"), 50))
    keys = {slot: set(getattr(tissue, slot)) for slot in ("obs", "obsm", "obsp", "uns")}
    first, second = (np.asarray(stfuse.pl.embedding(tissue, "X_c").collections[0].get_offsets()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(first) == 195
    assert {slot: set(getattr(tissue, slot)) for slot in keys} == keys
    ax = stfuse.pl.embedding(tissue, "X_c", "group")
    points = np.asarray(ax.collections[0].get_offsets())
    faces = np.array([to_hex(c) for c in ax.collections[0].get_facecolors()])
    centres = np.array([points[faces == f].mean(0) for f in np.unique(faces)])
    nearest = ((points[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (np.unique(faces)[nearest] == faces).mean() > 0.98


def test_two_columns_are_drawn_as_they_are(tissue):
    tissue.obsm["X_umap"] = np.random.default_rng(0).normal(size=(200, 2))
    ax = stfuse.pl.embedding(tissue, "X_umap", "gene1")
    np.testing.assert_allclose(np.sort(ax.collections[0].get_offsets(), 0), np.sort(tissue.obsm["X_umap"], 0))
    assert ax.get_xlabel() == "umap 1"


def test_panels_and_own_axes(tissue, tmp_path):
    axes = stfuse.pl.embedding(tissue, "X_pca", ["domain", "gene1", "X_image:0"], method="pca", save=tmp_path / "a.png")
    assert [ax.get_title() for ax in axes] == ["domain", "gene1", "X_image:0"]
    _, own = plt.subplots()
    assert stfuse.pl.embedding(tissue, "X_pca", "domain", method="pca", ax=own) is own


def test_before_and_after_under_one_legend(tissue, contents):
    tissue.obsm["X_less"] = tissue.obsm["X_pca"].copy()
    tissue.obsm["X_less"][:50] = np.nan
    tissue.obs["number"] = np.linspace(3, 9, 200)
    tissue.uns["domain_colors"] = PALETTE[: tissue.obs["domain"].nunique()]
    before = contents(tissue)
    reps = ["X_image", "X_less"]
    axes = stfuse.pl.embedding(tissue, reps, ["domain", "number"], method="pca")
    np.testing.assert_equal(contents(tissue), before)
    assert [ax.get_title() for ax in axes] == reps * 2
    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [200, 150] * 2
    # the legend of a row stands once, at its end, and says of what it is
    assert [ax.get_legend() is not None for ax in axes] == [False, True, False, False]
    assert axes[1].get_legend().get_title().get_text() == "domain"
    assert [len(ax.child_axes) for ax in axes] == [0, 0, 0, 1]
    assert axes[3].child_axes[0].get_ylim() == pytest.approx((3, 9))  # of all that is drawn
    # each panel is what it is alone
    for i, rep in enumerate(reps):
        alone = stfuse.pl.embedding(tissue, rep, "domain", method="pca")
        for drawn in ("get_offsets", "get_facecolors"):
            np.testing.assert_array_equal(
                getattr(axes[i].collections[0], drawn)(), getattr(alone.collections[0], drawn)()
            )
    assert axes[0].get_position().y0 == axes[1].get_position().y0 > axes[2].get_position().y0


@pytest.mark.parametrize("ncols", [1, 2, 4])
def test_panels_of_codes_do_not_overlap(tissue, ncols):
    axes = stfuse.pl.embedding(tissue, ["X_image", "X_pca", "spatial"], ["domain", "gene1"], method="pca", ncols=ncols)
    figure = axes[0].figure
    figure.canvas.draw()
    boxes = []
    for ax in axes:
        boxes += [ax.get_window_extent(), *(t.get_window_extent() for t in (ax.title, ax.xaxis.label, ax.yaxis.label))]
        boxes += [ax.get_legend().get_window_extent()] if ax.get_legend() else []
        boxes += [child.get_tightbbox() for child in ax.child_axes]
    for i, a in enumerate(boxes):
        assert a.x0 >= -1 and a.y0 >= -1 and a.x1 <= figure.bbox.width + 1 and a.y1 <= figure.bbox.height + 1
        for b in boxes[i + 1 :]:
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(overlap) < 1.5


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"use_rep": []}, ValueError, "use_rep is an empty list"),
        ({"use_rep": 5}, TypeError, "use_rep must be a string"),
        ({"use_rep": ["X_pca", "X_cameo"]}, KeyError, "X_cameo"),
        ({"use_rep": ["X_pca", "X_image"], "ax": True}, ValueError, "1 colour.* x 2 code.* make 2"),
        ({"use_rep": ["X_pca", "X_image"], "title": ["a"]}, ValueError, "1 entries for 2 panels"),
        ({"use_rep": "X_cameo"}, KeyError, "X_pca"),
        ({"use_rep": "X_empty"}, ValueError, "too few"),
        ({"method": "tsne"}, ValueError, "umap"),
        ({"color": "nothing"}, KeyError, "nothing"),
        ({"n_neighbors": "15"}, TypeError, "n_neighbors must be"),
        ({"seed": "a"}, TypeError, "seed must be"),
        ({"size": -1}, ValueError, "size must be a number above 0"),
        ({"legend": "no"}, TypeError, "legend must be True or False"),
        ({"color": ["domain", "gene1"], "ax": True}, ValueError, "one panel"),
        ({"color": ["domain", "gene1"], "title": ["a"]}, ValueError, "title"),
    ],
)
def test_errors(tissue, kwargs, error, match):
    tissue.obsm["X_empty"] = np.full((200, 3), np.nan)
    with pytest.raises(error, match=match):
        stfuse.pl.embedding(tissue, **{"use_rep": "X_pca", "method": "pca", **kwargs})
