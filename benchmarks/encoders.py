"""What image features tell of known layers, and whether staining is better corrected in the image or in the features.

``python encoders.py --out encoders.csv`` computes, ``--report encoders.csv`` prints the table.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stfuse

ENCODERS = ("texture", "efficientnet-lite0")
STAINS = (None, "macenko", "reinhard")
CORRECTIONS = ("none", "centred", "harmony")


def tissues() -> dict[str, tuple[AnnData, str, str]]:
    """Real sections with labels: object, column of labels, column of sections."""
    found = {"MOB": (stfuse.datasets.mob(), "layer", "section")}
    folder = os.environ.get("STFUSE_DATA")
    if folder is None:
        return found
    sections = []
    for name, label in (("A1", "pathologist_label"), ("B4", "label_transferred")):
        section = read_h5ad(Path(folder) / "her2st" / f"her2st_{name}.h5ad")
        section.obs["label"] = section.obs[label].astype(str)
        sections.append(section)
    shared = sections[0].var_names.intersection(sections[1].var_names)
    joined = AnnData(
        np.zeros((sum(s.n_obs for s in sections), len(shared)), np.float32),
        obs=pd.concat([s.obs[["label", "section"]] for s in sections], keys=["A1", "B4"]).reset_index(drop=True),
        obsm={"spatial": np.concatenate([s.obsm["spatial"] for s in sections])},
        uns={"spatial": {k: v for s in sections for k, v in s.uns["spatial"].items()}},
    )
    joined.obs_names = joined.obs_names.astype(str)
    both = set.intersection(*(set(s.obs["label"]) for s in sections)) - {"undetermined", "nan"}
    found["her2st"] = (joined[joined.obs["label"].isin(both)].copy(), "label", "section")
    return found


def corrected(features: np.ndarray, section: np.ndarray, how: str) -> np.ndarray:
    """Take the section out of features: not at all, by its mean, or by Harmony on 50 components."""
    if how == "none":
        return features
    if how == "centred":
        frame = pd.DataFrame(features)
        return (frame - frame.groupby(section).transform("mean")).to_numpy()
    import harmonypy

    components = PCA(min(50, features.shape[1]), random_state=0).fit_transform(StandardScaler().fit_transform(features))
    meta = pd.DataFrame({"section": section})
    return harmonypy.run_harmony(components, meta, "section", verbose=False, random_state=0).Z_corr


def probe(features: np.ndarray, label: np.ndarray, section: np.ndarray) -> list[float]:
    """Macro F1 of a logistic regression on each section left out."""
    scores = []
    for left_out in np.unique(section):
        train = section != left_out
        parts = min(50, features.shape[1], train.sum() - 1)
        model = make_pipeline(StandardScaler(), PCA(parts, random_state=0), LogisticRegression(C=0.1, max_iter=2000))
        predicted = model.fit(features[train], label[train]).predict(features[~train])
        scores.append(float(f1_score(label[~train], predicted, average="macro")))
    return scores


def compute() -> pd.DataFrame:
    """Run everything; features are deterministic, the spread is over the sections left out."""
    rows = []
    for name, (adata, label_key, section_key) in tissues().items():
        label, section = adata.obs[label_key].astype(str).to_numpy(), adata.obs[section_key].astype(str).to_numpy()
        for encoder in ENCODERS:
            for stain in STAINS:
                changed = stfuse.pp.image_features(adata, encoder, library_key=section_key, stain=stain, copy=True)
                for correction in CORRECTIONS:
                    scores = probe(corrected(changed.obsm["X_image"], section, correction), label, section)
                    rows += [(name, encoder, stain or "none", correction, i, s) for i, s in enumerate(scores)]
                    print(*rows[-1], flush=True)
    return pd.DataFrame(rows, columns=["tissue", "encoder", "stain", "features", "fold", "f1"])


def report(table: pd.DataFrame) -> str:
    """Mean ± standard deviation over the sections left out, as a Markdown table."""
    lines = ["| tissue | encoder | image | features as they are | centred by section | Harmony |", "|-|-|-|-|-|-|"]
    for (tissue, encoder, stain), part in table.groupby(["tissue", "encoder", "stain"], sort=False):
        cells = [part.loc[part["features"] == c, "f1"] for c in CORRECTIONS]
        image = "as it is" if stain == "none" else stain.capitalize()
        lines.append(
            f"| {tissue} | {encoder} | {image} | " + " | ".join(f"{c.mean():.2f} ± {c.std():.2f}" for c in cells) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compute or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.out:
        compute().to_csv(options.out, index=False)
    if options.report:
        print(report(pd.read_csv(options.report)))


if __name__ == "__main__":
    main()
