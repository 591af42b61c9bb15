"""Where the instances that a table annotates lie in a SpatialData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from spatialdata import SpatialData

_AXES = ("x", "y")


def systems_of(element: Any) -> dict[str, Any]:
    """Coordinate systems of an element by name, with the transformation to each."""
    from spatialdata.transformations import get_transformation

    found: Any = get_transformation(element, get_all=True)
    return found


def affine(element: Any, name: str, system: str) -> np.ndarray:
    """Affine 3 x 3 map from the own coordinates of an element (pixels, of an image) to a coordinate system."""
    from spatialdata.transformations import get_transformation

    transformation: Any = get_transformation(element, to_coordinate_system=system)
    matrix = np.asarray(transformation.to_affine_matrix(input_axes=_AXES, output_axes=_AXES), dtype=np.float64)
    if abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise ValueError(f"The transformation of {name!r} to {system!r} flattens the plane and can't be inverted.")
    return matrix


def places_of(element: Any, name: str, instances: pd.Index, system: str) -> np.ndarray:
    """Centres of the instances in a coordinate system, NaN where the element has none."""
    from spatialdata import get_centroids

    if hasattr(element, "geometry"):
        middle = element.geometry.centroid
        matrix = affine(element, name, system)
        places = np.column_stack([middle.x, middle.y]) @ matrix[:2, :2].T + matrix[:2, 2]
        centroids = pd.DataFrame(places, index=element.index)
    else:
        centroids = get_centroids(element, coordinate_system=system).compute()[list(_AXES)]
    if not centroids.index.is_unique:
        example = centroids.index[centroids.index.duplicated()][0]
        raise ValueError(
            f"The index of {name!r} is not unique ({example!r} occurs more than once): ids must name one instance."
        )
    if len(instances) and not instances.isin(centroids.index).any():
        raise ValueError(
            f"No instance that the table names ({instances[0]!r}, {instances.dtype}) is in the index of {name!r} "
            f"({centroids.index[0]!r}, {centroids.index.dtype}): give both the same type."
        )
    return centroids.reindex(instances).to_numpy(dtype=np.float64)


def regions_of(table: AnnData) -> list[str]:
    """Names of the elements that a table annotates."""
    region = table.uns.get("spatialdata_attrs", {}).get("region")
    if region is None:
        return []
    return [region] if isinstance(region, str) else [str(r) for r in region]


def places_of_table(sdata: SpatialData, table: AnnData) -> np.ndarray | None:
    """Centres of all observations of a table, each element in one coordinate system; None where it annotates none."""
    attrs = table.uns.get("spatialdata_attrs", {})
    there = [region for region in regions_of(table) if region in sdata]
    if not there or attrs.get("region_key") not in table.obs or attrs.get("instance_key") not in table.obs:
        return None
    column = table.obs[attrs["region_key"]].astype(str).to_numpy()
    places = np.full((table.n_obs, 2), np.nan)
    for region in there:
        rows = np.flatnonzero(column == region)
        if len(rows):
            systems = list(systems_of(sdata[region]))
            system = "global" if "global" in systems else systems[0]
            places[rows] = places_of(
                sdata[region], region, pd.Index(table.obs[attrs["instance_key"]].iloc[rows]), system
            )
    return places
