"""Pathway footprints that come with the package."""

from importlib.resources import files
from typing import Literal

import pandas as pd

_ORGANISMS = ("human", "mouse")


def progeny(organism: Literal["human", "mouse"] = "human") -> pd.DataFrame:
    """Load the PROGENy pathways: 14 pathways with the 100 genes that respond to each most.

    A weight tells how much and in which direction a gene's expression moves when the pathway is
    perturbed. With these footprints `decoupler.mt.ulm` turns expression into
    pathway activities. It comes with the package, nothing is downloaded.

    Parameters
    ----------
    organism
        `"human"` or `"mouse"`; gene symbols are written accordingly.

    Returns
    -------
    pandas.DataFrame
        `source` (the pathway), `target` (gene symbol) and `weight`, a pathway's strongest genes first; the
        form that decoupler reads. Human: 1,400 rows, 100 for each pathway. Mouse: 1,489 rows, because some
        human genes have several counterparts.

    Raises
    ------
    ValueError
        If there is no such organism.

    Notes
    -----
    Pathways by [1]_, mouse by [2]_. Apache License 2.0, kept beside the data.

    References
    ----------
    .. [1] Schubert et al., Perturbation-response genes reveal signaling footprints in cancer gene
       expression, Nature Communications (2018).
    .. [2] Holland et al., Transfer of regulatory knowledge from human to mouse for functional genomics
       analysis, BBA Gene Regulatory Mechanisms (2020).

    Examples
    --------
    >>> import stfuse
    >>> net = stfuse.datasets.progeny("mouse")
    >>> net.shape, net["source"].nunique()
    ((1489, 3), 14)
    """
    if organism not in _ORGANISMS:
        raise ValueError(f"No PROGENy pathways for organism {organism!r}. There are: {', '.join(_ORGANISMS)}.")
    path = files("stfuse.datasets") / "data" / "progeny" / f"{organism}.csv.gz"
    with path.open("rb") as file:
        return pd.read_csv(file, compression="gzip")
