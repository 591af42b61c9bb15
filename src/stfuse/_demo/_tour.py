"""The state of the demo on its way through the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _registry

SECTION, LAYER, INDIVIDUAL, LOGGED = "section", "layer", "individual", "log1p"
# ways of finding domains
FUSED, TOGETHER, SURROUNDINGS = "Fused", "Side by side", "Neighbour mean"
SINGLE = ("Image alone", "RNA alone")
# PROGENy recommends 100 targets a pathway; the bundled sections measure 1,000 genes and keep at most ten of them
MIN_TARGETS = 4
LAYER_NAMES = {"GCL": "granule cells", "MCL": "mitral cells", "GL": "glomeruli", "ONL": "olfactory nerve"}


@dataclass(frozen=True)
class Settings:
    """What can be changed about the tour."""

    method: str = "cameo"
    seed: int = 0
    # one more than the known layers: photographs show folds and dirt, which the layers know nothing of
    n_clusters: int = 5
    # None: as many as the method's file says
    max_epochs: int | None = None
    n_permutations: int = 1000
    n_neighbors: int = 10
    encoder: str = "texture"
    checkpoint: Path | None = None


@dataclass
class Tour:
    """The object on its way through the steps, and what the report needs beside it."""

    settings: Settings
    adata: AnnData
    rivals: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_number: pd.DataFrame = field(default_factory=pd.DataFrame)
    enrichment: pd.DataFrame = field(default_factory=pd.DataFrame)
    targets: pd.Series = field(default_factory=lambda: pd.Series(dtype=int))
    activity: pd.DataFrame = field(default_factory=pd.DataFrame)
    padj: pd.DataFrame = field(default_factory=pd.DataFrame)
    pathways: pd.DataFrame = field(default_factory=pd.DataFrame)
    unanimous: pd.DataFrame = field(default_factory=pd.DataFrame)
    markers: pd.DataFrame = field(default_factory=pd.DataFrame)
    search: pd.DataFrame = field(default_factory=pd.DataFrame)
    queries: list[Query] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Path] = field(default_factory=dict)

    @property
    def method(self) -> _registry.Method:
        """The method that fuses, as the package knows it."""
        return _registry.get(self.settings.method)

    @property
    def slots(self) -> _keys.Slots:
        """Where the method writes."""
        return _keys.slots(self.settings.method)

    @property
    def record(self) -> Mapping[str, Any]:
        """What the method says of its run."""
        return self.adata.uns[self.slots.record]

    @property
    def domains(self) -> pd.Series:
        """The fused domains, categorical."""
        return self.adata.obs[self.slots.domain]

    @property
    def individuals(self) -> int:
        """How many individuals the sections come from; 0 = nobody says."""
        return int(self.adata.obs[INDIVIDUAL].nunique()) if INDIVIDUAL in self.adata.obs else 0

    @property
    def layer_order(self) -> list[str]:
        """The known layers from the middle of the tissue outwards."""
        return inside_out(self.adata, self.adata.obs[LAYER])

    @property
    def partner(self) -> dict[str, str]:
        """The known layer that each domain matches; a domain left over has none."""
        return partners(self.domains, self.adata.obs[LAYER], self.layer_order)

    def shown(self, name: str) -> str:
        """Name a way of finding domains; that by the fused code together with its method."""
        return f"{FUSED} ({self.method.title})" if name == FUSED else name

    def label(self, domain: str) -> str:
        """Name a domain together with its layer."""
        layer = self.partner.get(domain)
        return f"{domain} ({layer})" if layer else str(domain)

    @property
    def spare(self) -> int:
        """How many domains there are more than known layers."""
        return self.settings.n_clusters - len(self.layer_order)

    @property
    def top_pathway(self) -> str:
        """The pathway that differs most between domains."""
        return str((self.pathways.max() - self.pathways.min()).idxmax())


@dataclass(frozen=True)
class Query:
    """One image patch and how similar the RNA of every spot in another section is to it."""

    spot: str
    domain: str
    section: str
    target: str
    similarity: pd.Series
    layer: str
    found: list[str]
    hits: int


def inside_out(adata: AnnData, labels: pd.Series) -> list[str]:
    """Order groups by how far their spots lie from the middle of their section on average."""
    xy = pd.DataFrame(np.asarray(adata.obsm[_keys.SPATIAL])[:, :2], index=adata.obs_names)
    middle = xy.groupby(adata.obs[SECTION], observed=True).transform("median")
    radius = np.sqrt(((xy - middle) ** 2).sum(axis=1))
    return list(radius.groupby(labels.astype(str)).mean().sort_values().index)


def partners(labels: pd.Series, layers: pd.Series, order: Sequence[str]) -> dict[str, str]:
    """Match groups and known layers one to one by their overlap; a group left over has no partner."""
    from scipy.optimize import linear_sum_assignment

    overlap = pd.crosstab(labels, layers)[list(order)]
    rows, columns = linear_sum_assignment(overlap.to_numpy(), maximize=True)
    return {str(overlap.index[row]): order[column] for row, column in zip(rows, columns, strict=True)}


def by_layer(adata: AnnData, labels: pd.Series) -> pd.Categorical:
    """Rename groups D1, D2, ... after the layers they match, inside out, because cluster numbers mean nothing.

    Groups left over come last.
    """
    order = inside_out(adata, adata.obs[LAYER])
    labels = labels.astype(str)
    layer = partners(labels, adata.obs[LAYER].astype(str), order)
    ranked = sorted(inside_out(adata, labels), key=lambda g: order.index(layer[g]) if g in layer else len(order))
    names = {old: f"D{i}" for i, old in enumerate(ranked, start=1)}
    return pd.Categorical(labels.astype(str).map(names), categories=list(names.values()))


def within_sections(score: pd.DataFrame, section: pd.Series) -> pd.DataFrame:
    """Standardise scores within a section, so that its staining or depth cannot pass for biology."""
    groups = score.groupby(section, observed=True)
    z = (score - groups.transform("mean")) / groups.transform("std").replace(0.0, np.nan)
    return z.fillna(0.0)
