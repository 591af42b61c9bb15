"""Features that are there already: which of them the same work would give again, and which others stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from stfuse._log import logger
from stfuse.pp._feature_job import Plan, Request

# Entries of a record that are told by section; all others must agree before two calls share an array.
_BY_SECTION = ("crop_um", "crop_px", "crop_pixels", "mpp", "level", "image", "token")
_OF_CALL = ("crop_scale", "feature_names", "stain")


def earlier_features(
    table: AnnData, key: str, plan: Plan, request: Request
) -> tuple[np.ndarray | None, set[str], dict[str, Any]]:
    """Give features to go on from, the sections that need no work, and the record of all of it."""
    record: Any = table.uns.get(key)
    features: Any = table.obsm.get(key)
    if not isinstance(record, Mapping) or not isinstance(features, np.ndarray) or not _alike(record, features, request):
        return None, set(), plan.record
    tokens = record.get("token")
    tokens = tokens if isinstance(tokens, Mapping) and not request.overwrite else {}
    kept = {name for name, token in plan.tokens.items() if tokens.get(name) == token}
    others = request.restricted and _same_encoder(record, plan.record)
    if kept:
        logger.info(
            "obsm[%r] has the features of %s already; overwrite=True computes them again", key, ", ".join(sorted(kept))
        )
    if not kept and not others:
        return None, set(), plan.record
    features = features.copy()
    stays = np.full(plan.n_obs, others)
    for section in plan.sections:
        stays[section.rows] = section.name in kept
    features[~stays] = np.nan
    return features, kept, _merged(record, plan.record) if others else plan.record


def _alike(record: Mapping[str, Any], features: np.ndarray, request: Request) -> bool:
    """Whether arrays have the same form; width is the encoder's."""
    n_cells = sum(g * g for g in request.cells)
    form = features.shape[1:-1] == ((n_cells,) if request.is_grid else ())
    return form and np.array_equal(np.asarray(record.get("grid", [])), request.cells)


def _same_encoder(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    keys = (set(old) | set(new)) - set(_BY_SECTION) - set(_OF_CALL) - {"grid"}
    stains = [record.get("stain", {}).get("method") for record in (old, new)]
    return stains[0] == stains[1] and all(str(old.get(key)) == str(new.get(key)) for key in keys)


def _merged(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    record = new | {key: {**old.get(key, {}), **new.get(key, {})} for key in _BY_SECTION if key in old or key in new}
    if "stain" in new:
        record["stain"] = new["stain"] | {"fits": {**old["stain"]["fits"], **new["stain"]["fits"]}}
    return record
