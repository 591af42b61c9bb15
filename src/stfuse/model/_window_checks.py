"""What a window network can be trained on: enough observations, places that differ, batches that are not sections."""

from __future__ import annotations

import numpy as np

from stfuse._log import warn
from stfuse._read import STACKED
from stfuse._views import Views


def has_batches(views: Views) -> bool:
    """Whether there are several batches."""
    return views.batch is not None and len(views.batches) > 1


def check_trainable(views: Views, n_clusters: int) -> None:
    """Refuse more clusters than observations; tell of batches that are sections."""
    for name, has in (("image", views.has_image), ("RNA", views.has_rna)):
        if has.sum() < n_clusters:
            raise ValueError(
                f"n_clusters={n_clusters} is more than the {has.sum()} observation(s) with the {name} view."
            )
    sections = views.section if len(views.sections) > 1 else None
    if has_batches(views) and sections is not None and _same_groups(sections, views.batch):
        warn(
            "Each batch is one section and each section one batch: what is particular to a section, tissue or technique, is taken "
            "for a difference of batches and removed."
        )


def _same_groups(one: np.ndarray, other: np.ndarray | None) -> bool:
    """Whether two groupings are the same but for names."""
    if other is None:
        return False
    pairs = np.unique(np.column_stack([one, other]), axis=0)
    return len(pairs) == len(np.unique(one)) == len(np.unique(other))


def _spread(places: np.ndarray) -> bool:
    """Whether places differ in both directions."""
    there = places[np.isfinite(places).all(1)]
    return len(there) > 0 and bool(np.ptp(there, axis=0).all())


def check_places(views: Views) -> None:
    """Refuse data without coordinates, and sections on top of each other that count as one."""
    if views.places is None:
        raise ValueError(
            "There are no coordinates in obsm['spatial']: AESTETIK reads what lies around each observation. Add them, or look at "
            "single observations with window_size=1."
        )
    if views.library_key is not None:
        return
    # an array in which nothing varies is a leftover, from which no lattice is read
    for places in (views.places, views.array if views.array is not None and _spread(views.array) else None):
        for has in (views.has_rna, views.has_image):
            # of one view: the other one may have been measured on the same places as observations of its own
            there = np.empty((0, 2)) if places is None else places[has]
            there = there[np.isfinite(there).all(1)]
            stacked = len(there) - len(np.unique(there[:, 0] + 1j * there[:, 1]))
            # one pair is an accident
            if stacked > max(1, STACKED * len(there)):
                raise ValueError(
                    f"{stacked} of {len(there)} observations lie where another one lies, though all count as one section: if there are "
                    "several sections, say with library_key= which obs column tells them apart; if not, name a column with one value."
                )
