"""Every slot name of the package, once."""

from typing import NamedTuple

IMAGE = "X_image"
RNA = "X_pca"
SPATIAL = "spatial"
PAIRED = "paired"
IMAGE_GRID = "X_image_grid"
CELL_GRAPH = "cell_graph"
# columns of obs with places on the array: Space Ranger's, and those of Spatial Transcriptomics
ARRAY = (("array_row", "array_col"), ("array_x", "array_y"))
UNASSIGNED = "unassigned"
VIEWS = ("image", "rna")


class Slots(NamedTuple):
    """Names a fusion method writes under, all derived from ``key_added``."""

    record: str
    fused: str
    image: str
    rna: str
    private_image: str
    private_rna: str
    domain: str
    neighbors: str


def slots(key_added: str) -> Slots:
    """Return the slot names that belong to ``key_added``."""
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        raise ValueError(
            f"key_added must be a non-empty string without a slash (h5ad cannot hold slashes in keys), got {key_added!r}."
        )
    x = f"X_{key_added}"
    return Slots(
        record=key_added,
        fused=x,
        image=f"{x}_image",
        rna=f"{x}_rna",
        private_image=f"{x}_private_image",
        private_rna=f"{x}_private_rna",
        domain=f"{key_added}_domain",
        neighbors=f"{key_added}_neighbors",
    )
