"""Quality against the number of pairs: retrieval, linear probe and domains of every method.

Run ``python benchmarks/pairing.py --out table.csv``; ``--report table.csv`` prints the tables of README.md.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from data import KINDS, LEVELS, Task, bulb, hide, synthetic
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stfuse
from stfuse.metrics import recall_at_percent

METHODS = {
    "cameo": {},
    "pcca": {},
    "clip": {},
    "cameo published": {"faithful": True},
}


def probe(train: np.ndarray, test: np.ndarray, task: Task) -> float:
    """Macro F1 of a linear probe on the held-out part."""
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    head.fit(train, task.train.obs[task.label])
    return float(f1_score(task.test.obs[task.label], head.predict(test), average="macro"))


def domains(code: np.ndarray, task: Task) -> float:
    """ARI of K-means on the code of the training part, as it comes out."""
    labels = task.train.obs[task.label]
    found = KMeans(labels.nunique(), n_init=10, random_state=0).fit_predict(code)
    return float(adjusted_rand_score(labels, found))


def centred(adata: AnnData, key: str, task: Task) -> np.ndarray:
    """Features without the mean of their section, as the methods get them with ``batch_key``."""
    x = np.asarray(adata.obsm[key], dtype=np.float64)
    if task.library_key:
        section = adata.obs[task.library_key].to_numpy()
        for name in np.unique(section):
            x[section == name] -= x[section == name].mean(0)
    return x


def baselines(task: Task) -> list[dict]:
    """Single views and concatenations, which know nothing of pairs."""
    rows, views = [], {}
    for name, key in (("image", "X_image"), ("rna", "X_pca")):
        views[name] = centred(task.train, key, task), centred(task.test, key, task)
        z = StandardScaler().fit(views[name][0])
        pca = PCA(min(24, views[name][0].shape[1]), random_state=0).fit(
            views[name][0] if name == "rna" else z.transform(views[name][0])
        )
        views[f"{name} pcs"] = tuple(pca.transform(x if name == "rna" else z.transform(x)) for x in views[name])
        size = np.sqrt(views[f"{name} pcs"][0].var(0).sum())
        views[f"{name} z"] = tuple(x / views[f"{name} pcs"][0].std(0) for x in views[f"{name} pcs"])
        views[f"{name} balanced"] = tuple(x / size for x in views[f"{name} pcs"])
    for method, parts in (
        ("image alone", ["image pcs"]),
        ("rna alone", ["rna pcs"]),
        ("concat features", ["image", "rna"]),
        ("concat raw PCs", ["image pcs", "rna pcs"]),
        ("concat z PCs", ["image z", "rna z"]),
        ("concat balanced PCs", ["image balanced", "rna balanced"]),
    ):
        train, test = (np.hstack([views[p][i] for p in parts]) for i in (0, 1))
        if method == "concat features":
            z = StandardScaler().fit(train)
            train, test = z.transform(train), z.transform(test)
        for level in LEVELS:
            rows.append({"method": method, "level": level, "probe": np.nan, "ari": np.nan, "recall": np.nan})
        score = {"probe": probe(train, test, task), "ari": domains(train, task)}
        for row in rows[-len(LEVELS) :]:
            row.update(score)
    return rows


def fused(task: Task, method: str, level: float) -> dict:
    """One method at one pairing level."""
    hide(task, level, task.seed)
    start = time.perf_counter()
    options = METHODS[method] | {"progress": False}
    function = getattr(stfuse.tl, method.split()[0])
    model = function(
        task.train, paired_key="paired", library_key=task.library_key, batch_key=task.library_key, key_added="m", seed=task.seed, return_model=True,
        **options,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    task.test.obs["paired"] = True
    train, test = model.codes(), model.codes(task.test)
    recall = 0.5 * (recall_at_percent(test.image, test.rna) + recall_at_percent(test.rna, test.image))
    kept = task.train.uns["m"]["report"].get("epochs_kept", np.nan)
    return {
        "method": method,
        "level": level,
        "probe": probe(train.fused, test.fused, task),
        "ari": domains(train.fused, task),
        "recall": recall,
        "seconds": seconds,
        "epochs_kept": kept,
    }


def run(out: Path, kinds: list[str], seeds: list[int], methods: list[str]) -> None:
    """Append rows to the table; rows that are there already are skipped."""
    done = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["kind", "seed", "method", "level"])
    for seed in seeds:
        for kind in kinds:
            have = done[(done.kind == kind) & (done.seed == seed)]
            todo = [(m, lv) for m in methods for lv in LEVELS if not ((have.method == m) & (have.level == lv)).any()]
            if not todo and len(have):
                continue
            task = bulb(seed) if kind == "MOB" else synthetic(kind, seed)
            rows = [] if (have.method == "image alone").any() else baselines(task)
            rows += [fused(task, m, lv) for m, lv in todo]
            done = pd.concat([done, pd.DataFrame(rows).assign(kind=kind, seed=seed)], ignore_index=True)
            done.to_csv(out, index=False)
            print(done[(done.kind == kind) & (done.seed == seed)].to_string(), flush=True)


def _cell(values: pd.Series) -> str:
    """Mean over seeds and standard deviation."""
    return f"{values.mean():.2f} ± {values.std():.2f}"


def _print(header: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(header) + " |")
    print("|" + "-|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def report(path: Path) -> None:
    """Print tables in Markdown: mean over seeds ± standard deviation."""
    table = pd.read_csv(path)
    kinds, levels = list(dict.fromkeys(table.kind)), sorted(table.level.unique(), reverse=True)
    known = dict(list(table.groupby(["kind", "method", "level"], sort=False)))
    for column, title in (
        ("recall", "Recall at 5 %, unseen spots"),
        ("probe", "Linear probe, macro F1"),
        ("ari", "Domains, ARI"),
    ):
        print(f"\n#### {title}")
        _print(
            ["tissue", "method", *(f"{100 * level:.0f} % pairs" for level in levels)],
            [
                [kind, method, *(_cell(known[kind, method, level][column]) for level in levels)]
                for kind in kinds
                for method in METHODS
                if (kind, method, levels[0]) in known
            ],
        )
    plain = [m for m in dict.fromkeys(table.method) if m not in METHODS]
    for column, title in (("probe", "Linear probe, macro F1"), ("ari", "Domains, ARI")):
        print(f"\n#### {title}, without any pairs")
        _print(["tissue", *plain], [[kind, *(_cell(known[kind, m, 1.0][column]) for m in plain)] for kind in kinds])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("pairing.csv"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS, "MOB"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.report:
        report(arguments.report)
    else:
        run(arguments.out, arguments.kinds, arguments.seeds, arguments.methods)


if __name__ == "__main__":
    main()
