"""MIRROR and other methods on real RNA and synthetic tiles of the same patients: subtype and survival, all slides or few shots.

``python slides.py`` prints tables; ``--out slides.csv`` keeps every fold, and ``--report slides.csv`` prints tables of what is there, so that a
run may be cut by ``--task``, ``--shots``, ``--seeds`` and ``--methods`` into parts that append to one file.

RNA, subtype (ductal or lobular) and survival are those of TCGA-BRCA, a slide a patient. No tiles go with them here, so they are made: a sixth of a slide
is tumour, and shows there the four leading components of the RNA, a part of the subtype, a part of survival, and two signals
of its own. The rest of the slide, its stain and the number of tiles say nothing.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

import stfuse
from stfuse.tl._compare_slides import METHODS

TASKS = {
    "subtype": {"label_key": "subtype"},
    "survival": {"time_key": "months", "event_key": "event"},
}
SCORES = {"subtype": ["accuracy", "balanced_accuracy", "macro_f1", "auroc"], "survival": ["c_index"]}
COLUMNS = [
    "task",
    "shots",
    "seed",
    "method",
    "fold",
    "n_slides",
    "n_events",
    *SCORES["subtype"],
    *SCORES["survival"],
    "seconds",
]
SHARED, PRIVATE = 4, 2
# how much of subtype and survival the morphology shows, the rest is noise of such a strength that variances are near one
SUBTYPE, SURVIVAL = (0.4, 0.92), (0.3, 0.95)


def patients(folder: Path) -> AnnData:
    """Ductal and lobular carcinomas, the first slide of each patient."""
    table = pd.read_csv(folder / "tcga_brca_all_clean.csv.zip", low_memory=False)
    table = table[table["oncotree_code"].isin(["IDC", "ILC"])].drop_duplicates("case_id")
    genes = [column for column in table if column.endswith("_rnaseq")]
    table = table[table[genes].notna().all(axis=1) & (table["survival_months"] > 0)]
    obs = pd.DataFrame(
        {
            "subtype": pd.Categorical(table["oncotree_code"]),
            "months": table["survival_months"].to_numpy(),
            "event": table["censorship"].to_numpy() == 0,
        },
        index=table["case_id"].to_numpy(),
    )
    names = [gene.removesuffix("_rnaseq") for gene in genes]
    return AnnData(table[genes].to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=names))


def martingale_residual(obs: pd.DataFrame) -> np.ndarray:
    """Event less the cumulative hazard up to the time: above zero for those who died early."""
    from sksurv.nonparametric import nelson_aalen_estimator

    time_, hazard = nelson_aalen_estimator(obs["event"].to_numpy(), obs["months"].to_numpy())
    return obs["event"].to_numpy() - np.interp(obs["months"], time_, hazard)


def standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def morphology(slides: AnnData, seed: int) -> AnnData:
    """Tiles whose tumour shows part of what there is to tell."""
    rng = np.random.default_rng(1000 + seed)
    left, _, _ = np.linalg.svd(standard(slides.X), full_matrices=False)
    subtype, survival = (
        part * standard(signal) + noise * rng.normal(size=slides.n_obs)
        for signal, (part, noise) in (
            ((slides.obs["subtype"] == "ILC").to_numpy(float), SUBTYPE),
            (martingale_residual(slides.obs), SURVIVAL),
        )
    )
    own = rng.normal(size=(slides.n_obs, PRIVATE))
    signal = np.column_stack([left[:, :SHARED] * np.sqrt(slides.n_obs), subtype, survival, own])
    return stfuse.datasets.synthetic_tiles(
        signal, slides.obs_names, n_tiles=(40, 120), tumour_share=0.15, stain=1.0, strength=1.5, seed=seed
    )


def measure(options: argparse.Namespace, slides: AnnData) -> pd.DataFrame:
    """Every fold of every method, with the seconds that a method took in all of them."""
    found = []
    for seed in options.seeds:
        tiles = morphology(slides, seed)
        for task in options.task:
            for method in options.methods:
                began = time.perf_counter()
                table = stfuse.tl.compare_slides(
                    slides, tiles, slide_key="slide", methods=[method], shots=[k or None for k in options.shots], n_draws=options.draws,
                    select_genes=options.select_genes, n_splits=options.folds, seed=seed, progress=False, **TASKS[task],
                )  # fmt: skip
                seconds = time.perf_counter() - began
                folds = table[~table["fold"].isin(["mean", "sd"])].assign(task=task, seed=seed, seconds=seconds)
                # both tasks have the same columns, so that one file holds them
                found.append(folds.reindex(columns=COLUMNS))
                print(f"{task}, seed {seed}, {method}: {seconds:.0f} s", flush=True)
                if options.out:
                    found[-1].to_csv(options.out, mode="a", index=False, header=not Path(options.out).exists())
    return pd.concat(found, ignore_index=True)


def report(table: pd.DataFrame) -> None:
    """Mean over folds and seeds, and the standard deviation over seeds of the mean over folds, where there are several."""
    for (task, shots), part in table.groupby(["task", "shots"], sort=False):
        seeds = part["seed"].nunique()
        print(f"\n{task}, {f'{shots} shots' if shots else 'all slides'}, {seeds} seed(s)\n")
        print("| method | " + " | ".join(SCORES[task]) + " | s |")
        print("|-" * (len(SCORES[task]) + 2) + "|")
        for method in dict.fromkeys(part["method"]):
            rows = part[part["method"] == method]
            of_seed = rows.groupby("seed")[SCORES[task]].mean()
            told = [
                f"{of_seed[score].mean():.3f}" + (f" ± {of_seed[score].std():.3f}" if seeds > 1 else "")
                for score in SCORES[task]
            ]
            print(f"| {method} | " + " | ".join(told) + f" | {rows.groupby('seed')['seconds'].first().mean():.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 10], help="0 = all slides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--select-genes", action="store_const", const={}, help="select genes in each fold")
    parser.add_argument("--out", help="append every fold to this file")
    parser.add_argument("--report", help="print tables of this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.report:
        report(pd.read_csv(arguments.report))
    else:
        report(measure(arguments, patients(Path(os.environ["STFUSE_DATA"]) / "tcga")))
