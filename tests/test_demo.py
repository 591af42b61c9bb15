import logging
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import stfuse
from stfuse import _registry
from stfuse.__main__ import main
from stfuse._demo import _aestetik, _cameo, _html, _methods, _pipeline, _report, _tissue, _tour, _words
from stfuse._demo._methods import METHODS


def small_tissue(n_obs: int = 240, seed: int = 0) -> ad.AnnData:
    """Two small sections with photographs, layers, and gene names that PROGENy knows."""
    adata = stfuse.datasets.synthetic_tissue(
        n_obs, n_sections=2, n_classes=(3, 1, 1), n_genes=120, lattice="square", pca=False, seed=seed
    )
    genes = stfuse.datasets.progeny("mouse").groupby("source").head(10)["target"].drop_duplicates()
    adata.var_names = list(genes[:120])
    adata.obs["layer"] = pd.Categorical("L" + adata.obs["class_shared"].astype(str))
    adata.obsm["spatial"] = adata.obsm["spatial"] + 100.0
    del adata.obsm["X_image"]
    adata.uns["spatial"] = {}
    rng = np.random.default_rng(seed)
    for section in adata.obs["section"].cat.categories:
        image = rng.integers(120, 255, (280, 280, 3), dtype=np.uint8)
        # the classes are stained differently, so that there is something to see
        mine = adata.obs["section"] == section
        for (x, y), code in zip(adata.obsm["spatial"][mine] * 0.2, adata.obs["layer"].cat.codes[mine], strict=True):
            image[int(y) - 10 : int(y) + 10, int(x) - 10 : int(x) + 10, code] //= 2
        scales = {"tissue_hires_scalef": 0.2, "spot_diameter_fullres": 55.0}
        adata.uns["spatial"][section] = {"images": {"hires": image}, "scalefactors": scales}
    return adata


class Page(HTMLParser):
    """Collects what a page loads, what it links to and what describes its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.loaded, self.links, self.ids, self.alts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "a":
            self.links.append(given["href"])
        else:
            self.loaded += [given[k] for k in ("src", "href", "srcset", "data", "poster") if k in given]
        if tag == "img":
            self.alts.append(given.get("alt", ""))


@pytest.fixture(scope="module", params=METHODS)
def toured(request, tmp_path_factory):
    out, method = tmp_path_factory.mktemp(request.param), request.param
    data, lines = small_tissue(), []
    if method == "aestetik":
        # only here, so that a report without individuals is written as well
        data.obs["individual"] = data.obs["section"].cat.rename_categories(["1", "2"])
    before = data.copy()
    # of an earlier run
    (out / "deep" / "er").mkdir(parents=True)
    (out / "deep" / "er" / "search_D9.png").write_bytes(b"")
    settings = _tour.Settings(method=method, seed=3, n_clusters=3, max_epochs=2, n_permutations=20)
    report = _pipeline.run(out / "deep" / "er", settings, data=data, say=lines.append)
    return SimpleNamespace(
        method=method,
        out=report.parent,
        data=data,
        before=before,
        lines=lines,
        settings=settings,
        text=report.read_text("utf-8"),
    )


VIEWS_MADE = {
    "cameo": {"X_pca", "X_cameo", "X_cameo_image", "X_cameo_rna"},
    "aestetik": {"X_pca", "X_image_pca", "X_pca_harmony", "X_image_pca_harmony", "X_aestetik"},
}


def test_writes_object_that_holds_everything(toured):
    adata, method = ad.read_h5ad(toured.out / "mob.h5ad"), toured.method
    made = VIEWS_MADE[method] | {"spatial", "X_image", "score_progeny", "padj_progeny"}
    assert made <= set(adata.obsm)
    assert list(adata.obs[f"{method}_domain"].cat.categories) == ["D1", "D2", "D3"]
    assert {method, "spatial", "rank_genes_groups", f"{method}_domain_nhood_enrichment"} <= set(adata.uns)
    assert {"spatial_connectivities", "spatial_distances"} <= set(adata.obsp)
    assert adata.uns[method]["seed"] == 3
    assert adata.uns[method]["params"]["max_epochs"] == 2
    assert (adata.X != toured.before.X).nnz == 0
    # the graph stays inside sections
    rows, columns = adata.obsp["spatial_connectivities"].nonzero()
    section = adata.obs["section"].to_numpy()
    assert (section[rows] == section[columns]).all()
    padj = adata.obsm["padj_progeny"].to_numpy()
    assert ((padj >= 0) & (padj <= 1)).all()


def test_object_holds_what_the_report_says(toured):
    obs = ad.read_h5ad(toured.out / "mob.h5ad").obs
    domain = obs[f"{toured.method}_domain"]
    fused = re.search(r'<th scope="row">Fused \((\w+)\)</th>(.*?)</tr>', toured.text)
    assert fused[1].lower() == toured.method
    numbers = [float(cell.replace("−", "-")) for cell in re.findall(r">(−?[\d.]+)</td>", fused[2])]
    expected = [adjusted_rand_score(obs["layer"], domain), normalized_mutual_info_score(obs["layer"], domain)]
    if "individual" in obs:
        expected.append(adjusted_rand_score(obs["individual"], domain))
    np.testing.assert_allclose(numbers, expected, atol=5.1e-4)
    assert ("individual" in obs) == ("Individual (ARI)" in toured.text) == ("come from two mice" in toured.text)
    for name, size in domain.value_counts().items():
        assert re.search(rf'<th scope="row">{name}[^<]*</th><td class="number">{size}</td>', toured.text)


def test_report_speaks_of_its_method_alone(toured):
    titles = {name: _registry.get(name).title for name in METHODS}
    assert titles.pop(toured.method) in toured.text
    words = re.sub(r"base64,[^\"]+", "", toured.text)
    assert not [name for name in (*titles, *titles.values()) if name in words]
    named = set(re.findall(r"stfuse\.(pp|tl|pl)\.(\w+)", words))
    assert ("tl", toured.method) in named
    for space, function in named:
        assert callable(getattr(getattr(stfuse, space), function))
    assert compile(_methods.route(_tour.Tour(toured.settings, toured.data)).go_on, "go on", "exec")


def test_search_is_for_methods_with_shared_codes(toured):
    page, shared = Page(toured.text), _registry.get(toured.method).shared
    assert ("search" in page.ids) == shared
    assert ("finds RNA of its own layer" in toured.text) == shared
    assert any("Search RNA" in line for line in toured.lines) == shared
    assert bool(list(toured.out.glob("search_*.png"))) == shared


def test_users_object_is_left_alone(toured):
    assert list(toured.data.obsm) == list(toured.before.obsm)
    assert list(toured.data.obs) == list(toured.before.obs)
    assert list(toured.data.uns) == list(toured.before.uns)
    assert (toured.data.X != toured.before.X).nnz == 0


def test_says_a_line_a_step(toured):
    steps = [line for line in toured.lines if line.startswith("[")]
    # one method searches, the other prepares its views
    assert [line[:7] for line in steps] == [f"[{number:2d}/11]" for number in range(1, 12)]
    assert str(toured.out / "report.html") in toured.lines[-1]


def test_figures_are_png(toured):
    names = {"tissue_section1", "tissue_section2", "rivals", "comparison", "history", "neighbours", "pathways"}
    names |= {"top_pathway", "markers"}
    names |= {"search_D1", "search_D2", "search_D3"} if toured.method == "cameo" else set()
    assert {path.stem for path in toured.out.glob("*.png")} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in toured.out.glob("*.png"))


def test_report_loads_nothing_from_elsewhere(toured):
    page = Page(toured.text)
    assert page.loaded
    assert all(source.startswith("data:") for source in page.loaded)
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    assert "url(" not in toured.text
    assert "@import" not in toured.text


def test_report_is_accessible(toured):
    page = Page(toured.text)
    assert page.tags.count("h1") == 1
    assert len(page.alts) == len(list(toured.out.glob("*.png")))
    assert all(len(alt) > 20 for alt in page.alts)
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.tags.count("img") == page.tags.count("figcaption")
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert '<html lang="en">' in toured.text
    assert 'name="viewport"' in toured.text


def test_report_is_honest_about_labels_and_genes(toured):
    assert "transferred by a classifier that looks at RNA only" in toured.text
    assert "Few genes carry this" in toured.text


def test_same_seed_same_codes(toured):
    tour = _tour.Tour(toured.settings, small_tissue())
    for title, step in _pipeline.steps_of(tour):
        step(tour)
        if title.startswith("Find domains"):
            break
    first, code = ad.read_h5ad(toured.out / "mob.h5ad"), f"X_{toured.method}"
    np.testing.assert_array_equal(tour.adata.obsm[code], first.obsm[code])
    assert tour.domains.astype(str).tolist() == first.obs[f"{toured.method}_domain"].astype(str).tolist()


def rings(labels: list[str]) -> ad.AnnData:
    """Make a section of rings that lie outside, inside and between; one group of labels each."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    obs = pd.DataFrame({"section": "a", "layer": np.repeat(labels, 12)}, index=[f"s{i}" for i in range(36)])
    # a shift of the whole section changes nothing
    return ad.AnnData(obs=obs.astype("category"), obsm={"spatial": np.vstack([3 * ring, ring, 2 * ring]) + [500, -30]})


def test_layers_are_ordered_from_the_inside_out():
    adata = rings(["7", "2", "0"])
    assert _tour.inside_out(adata, adata.obs["layer"]) == ["2", "0", "7"]


def test_domains_are_numbered_after_their_layers_and_the_rest_comes_last():
    adata = rings(["out", "in", "between"])
    # the group in the very middle is a part of the layer inside, so it is left over
    labels = pd.Series(["7"] * 12 + ["9"] * 4 + ["2"] * 8 + ["0"] * 12, index=adata.obs_names)
    named = _tour.by_layer(adata, labels)
    assert list(named) == ["D3"] * 12 + ["D4"] * 4 + ["D1"] * 8 + ["D2"] * 12
    assert list(named.categories) == ["D1", "D2", "D3", "D4"]


def test_by_domain_matches_a_literal_loop():
    rng = np.random.default_rng(0)
    index = [f"s{i}" for i in range(60)]
    score = pd.DataFrame(rng.normal(size=(60, 3)), index, ["A", "B", "flat"])
    score["flat"] = 1.0
    section = pd.Series(pd.Categorical(rng.choice(["x", "y"], 60)), index)
    domain = pd.Series(pd.Categorical(rng.choice(["D1", "D2"], 60)), index)
    # a shift and a stretch of one section must not show
    score.loc[section == "y", ["A", "B"]] = score.loc[section == "y", ["A", "B"]] * 5 + 100
    mean, unanimous = _pipeline.by_domain(score, domain, section)
    for pathway in ("A", "B"):
        z = score[pathway].copy()
        for s in ("x", "y"):
            part = score.loc[section == s, pathway]
            z[section == s] = (part - part.mean()) / part.std()
        for d in ("D1", "D2"):
            assert mean.loc[d, pathway] == pytest.approx(z[domain == d].mean())
            signs = {np.sign(z[(domain == d) & (section == s)].mean()) for s in ("x", "y")}
            assert unanimous.loc[d, pathway] == (signs == {np.sign(mean.loc[d, pathway])})
    assert (mean["flat"] == 0).all()


def test_search_matches_a_literal_loop():
    rng = np.random.default_rng(1)
    n, k = 40, 4
    obs = pd.DataFrame(
        {
            "section": pd.Categorical(np.repeat(["a", "b"], n // 2)),
            "layer": pd.Categorical(rng.choice(["in", "out"], n)),
            "cameo_domain": pd.Categorical(rng.choice(["D1", "D2"], n)),
        },
        index=[f"s{i}" for i in range(n)],
    )
    adata = ad.AnnData(obs=obs)
    adata.obsm["X_cameo_image"], adata.obsm["X_cameo_rna"] = rng.normal(size=(2, n, 5))
    tour = _tour.Tour(_tour.Settings(n_neighbors=k), adata)
    _pipeline.search_across_views(tour)
    hits = []
    for i in range(n):
        scored = []
        for j in range(n):
            if obs["section"].iloc[i] != obs["section"].iloc[j]:
                q, r = adata.obsm["X_cameo_image"][i], adata.obsm["X_cameo_rna"][j]
                scored.append((-(q @ r) / np.linalg.norm(q) / np.linalg.norm(r), j))
        nearest = [j for _, j in sorted(scored)[:k]]
        hits.append(np.mean([obs["layer"].iloc[j] == obs["layer"].iloc[i] for j in nearest]))
    assert tour.search.loc["All spots", "hit"] == pytest.approx(np.mean(hits))
    inside = (obs["layer"] == "in").to_numpy()
    assert tour.search.loc["in", "hit"] == pytest.approx(np.mean(np.array(hits)[inside]))
    assert tour.search.loc["in", "chance"] == pytest.approx(inside.mean())
    assert [query.domain for query in tour.queries] == ["D1", "D2"]
    assert all(query.section == "a" and query.target == "b" for query in tour.queries)


@pytest.mark.parametrize(
    ("ours", "said"), [(0.7, "more than any"), (0.5, "as much as the best"), (0.3, "Here it does not")]
)
def test_the_verdict_follows_the_numbers(ours, said):
    scores = pd.DataFrame({"ARI": [ours, 0.5, 0.2, 0.4]}, ["Fused", "RNA alone", "Image alone", "Side by side"])
    assert said in _words.score_words(scores)


def test_another_winner_of_the_second_score_is_told():
    scores = pd.DataFrame({"ARI": [0.7, 0.5], "NMI": [0.5, 0.6]}, ["Fused", "RNA alone"])
    assert "puts RNA alone first (0.60 against 0.50 for the fused code)" in _words.score_words(scores)
    assert "second score" not in _words.score_words(scores.assign(NMI=scores["ARI"]))


def test_neighbours_are_told_by_both_directions_and_by_layer():
    obs = pd.DataFrame({"section": "a", "layer": list("ABC"), "cameo_domain": ["D1", "D2", "D3"]}).astype("category")
    adata = ad.AnnData(obs=obs.set_axis(list("xyz")), obsm={"spatial": np.array([[0.0, 0], [2, 0], [-4, 0]])})
    tour = _tour.Tour(_tour.Settings(n_clusters=3), adata)
    names = ["D1", "D2", "D3"]
    tour.enrichment = pd.DataFrame([[9, -1, -6], [-3, 9, 2], [-8, 4, 9]], names, names).astype(float)
    words = _words.neighbour_words(tour)
    assert "D2 (B) and D3 (C) meet most (z&nbsp;=&nbsp;+3.0), D1 (A) and D3 (C) least (z&nbsp;=&nbsp;−7.0)" in words
    assert "mean z of +0.5, others −7.0" in words
    assert "as nested rings should" in words


def test_groups_are_matched_to_layers_one_to_one():
    layers = pd.Series(["in"] * 6 + ["out"] * 6)
    # the small group lies wholly inside, but the layer goes to the group that covers most of it
    labels = pd.Series(["D1"] * 4 + ["D2"] * 2 + ["D3"] * 6)
    assert _tissue.partners(labels, layers, ["in", "out"]) == {"D1": "in", "D3": "out"}


@pytest.mark.parametrize(("second", "said"), [(0.5, "same however many"), (0.7, "depends on how many")])
def test_winners_are_told_for_every_number_of_domains(second, said):
    by_number = pd.DataFrame({4: [0.6, 0.5], 5: [0.6, second]}, ["Fused", "RNA alone"])
    assert said in _words.number_words(by_number)


def test_held_out_ranks_are_shares_that_begin_at_the_linear_start():
    shares = np.array([0.04, 0.03, 0.02])
    history = pd.DataFrame({"held_out_rank": np.log(shares + 0.01)}, index=pd.RangeIndex(1, 4))
    start = np.log(0.05 + 0.01)
    record = {"history": history, "n_obs": {"paired": 100}}
    record["params"] = {"max_epochs": 3}
    record["report"] = {"held_out_gain": start - history["held_out_rank"].min(), "epochs_kept": 3}
    curve = _cameo.held_out(record)
    np.testing.assert_allclose(curve, [0.05, *shares])
    assert list(curve.index) == [0, 1, 2, 3]
    words = _cameo.fusion_words(record)
    assert "5.0 %" in words
    assert "2.0 %" in words
    assert "cut at 3 epochs" in words


@pytest.mark.parametrize("history", [None, pd.DataFrame({"loss": [1.0]})])
def test_without_held_out_pairs_the_report_says_so(history):
    record = {"history": history, "n_obs": {"paired": 5}, "report": {"epochs_kept": 0}}
    assert _cameo.held_out(record) is None
    assert "linear start" in _cameo.fusion_words(record)


def test_the_weight_of_the_image_is_told_from_the_record():
    report = {
        "signal_rna": 0.9,
        "predicted_rna": 0.2,
        "predicted_both": 0.25,
        "predicted_image": 0.3,
        "image_weight": 1.5,
    }
    words = _aestetik.weight_words({"report": report, "params": {"n_clusters": 7}, "n_obs": {"total": 1200}})
    assert "1,200 spots" in words
    assert "7 clusters" in words
    assert "clusters of the image explain 30 % of its variance, the best that use RNA 25 %" in words
    assert "weight of 1.50" in words


def test_losses_are_told_for_the_views_that_have_any():
    history = pd.DataFrame({"reconstruction_rna": [0.5, 0.4, 0.2], "triplet_rna": [0.9, 0.5, 0.7]})
    words = _aestetik.loss_words({"history": history})
    assert words.startswith("Over 3 epochs the error of")
    assert "rebuilt windows went from 0.50 to 0.20 (RNA), the loss of triplets went from 0.90 to 0.70 (RNA)." in words


@pytest.mark.parametrize(("fused", "said"), [(-0.0001, "do not tell them apart"), (0.4, "also tell them apart")])
def test_domains_that_follow_the_individual_are_told(fused, said):
    scores = pd.DataFrame({"individual": [0.2, fused, -0.001]}, ["RNA alone", "Fused", "Side by side"])
    words = _words.individual_words(scores, 2)
    assert said in words
    assert _words.plain(fused) in words
    assert "between −0.001 and 0.200" in words


def test_what_needs_no_learning_stands_in_short():
    tour = _tour.Tour(_tour.Settings(), rings(["in", "between", "out"]))
    tour.adata.obs["cameo_domain"] = _tour.by_layer(tour.adata, tour.adata.obs["layer"].astype(str))
    names = ["Image alone", "RNA alone", "Side by side", "Neighbour mean", "Fused"]
    tour.comparison = pd.DataFrame({"ARI": [0.1, 0.5, 0.4, 0.7, 0.6]}, names)
    tour.by_number = pd.DataFrame({3: tour.comparison["ARI"]})
    tour.pathways = pd.DataFrame({"A": [0.0, 1.0, 0.0]}, ["D1", "D2", "D3"])
    tour.targets = pd.Series({"A": 5})
    lines = _words.in_short(tour)
    assert "more than domains of RNA alone" in lines[1]
    assert "Both averaged over neighbours, without learning, reach 0.70" in lines[1]
    assert len(lines) == 3


def test_table_escapes_text_and_sets_numbers_flush_right():
    data = pd.DataFrame({"<b>": ["a&b", "c"], "share": ["12 %", "−3.1"]}, ["x<y", "z"])
    html = _html.table(data, 'say "it"', "corner")
    assert "<b>" not in html
    assert "a&amp;b" in html
    assert "x&lt;y" in html
    assert html.count('class="number"') == 3
    assert "<caption>" in html


def test_signed_numbers_have_a_true_minus_and_no_negative_zero():
    assert [_words.signed(v) for v in (-1.26, -0.01, 2)] == ["−1.3", "+0.0", "+2.0"]


def test_a_little_is_not_nothing():
    assert [_words.percent(v) for v in (0, 0.004, 0.006, 1)] == ["0 %", "under 1 %", "1 %", "100 %"]


def test_command_line_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--help"])
    assert stop.value.code == 0
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["demo"], ["dance"], ["demo", "--out", "x", "--seed", "-1"], ["demo", "--out", "x", "--method", "camel"]],
)
def test_command_line_refuses_what_it_does_not_know(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "method"), [([], "cameo"), (["--method", "aestetik"], "aestetik")])
def test_the_method_asked_for_is_the_one_that_runs(arguments, method, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(_pipeline, "run", lambda out, settings, say: seen.append((out, settings.method)))
    assert main(["demo", "--out", str(tmp_path), *arguments]) == 0
    assert seen == [(tmp_path, method)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "textur"], "Did you mean 'texture'"),
        (["--encoder", "uni", "--checkpoint", "nowhere.safetensors"], "no file checkpoint='nowhere.safetensors'"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_told_before_computing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(stfuse.datasets, "mob", lambda: pytest.fail("it computed"), raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_another_encoder_measures_the_photographs():
    pytest.importorskip("efficientnet_lite_pytorch")
    adata = stfuse.datasets.mob()
    tour = _tour.Tour(_tour.Settings(encoder="efficientnet-lite0"), adata[::40].copy())
    _pipeline.measure_image(tour)
    assert tour.adata.obsm["X_image"].shape == (41, 1280)
    assert _report.features_of(tour) == "features of the network efficientnet-lite0"


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_unwritable_folder_is_told_before_computing(name, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("here first")
    monkeypatch.setattr(stfuse.datasets, "mob", lambda: pytest.fail("it computed"), raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", str(tmp_path / name)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "cannot write into" in message or "is a file" in message
    assert "--out" in message
    assert (tmp_path / "file").read_text() == "here first"


def test_stopping_it_is_no_traceback(capsys, tmp_path, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(_pipeline.datasets, "mob", stop)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert "Stopped" in capsys.readouterr().err
    assert not logging.root.manager.disable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "method", "floor"), [([], "cameo", 0.4), (["--method", "aestetik"], "aestetik", 0.6)]
)
def test_full_demo(arguments, method, floor, tmp_path):
    command = [sys.executable, "-m", "stfuse", "demo", "--out", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    assert "Warning" not in done.stderr
    obs = ad.read_h5ad(tmp_path / "mob.h5ad").obs
    assert len(obs) == 1627
    domain = obs[f"{method}_domain"]
    assert domain.nunique() == 5
    # well above the image alone; labels come from RNA, so this is no proof of quality
    assert stfuse.metrics.domain_scores(obs["layer"], domain)["ari"] > floor
    assert stfuse.metrics.domain_scores(obs["individual"], domain)["ari"] < 0.05
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
