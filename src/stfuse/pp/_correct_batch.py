"""Remove the differences between samples from one view."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_seed, check_target, check_text, did_you_mean
from stfuse.pp._correct._parameters import TITLES, check_method, resolve
from stfuse.pp._correct._run import Batches, Correction, correct_counts, correct_features
from stfuse.pp._recipe import present_counts

MARK = "corrected"  # the entry of a record by which a result of this function is told
WIDTH = 20  # of scVI's representation where there is none to be as wide as


def correct_batch(
    data: Any,
    rep: str,
    *,
    batch_key: str,
    method: str = "harmony",
    theta: float | None = None,
    sigma: float | None = None,
    knn: int | None = None,
    n_layers: int | None = None,
    n_latent: int | None = None,
    max_epochs: int | None = None,
    layer: str | None = None,
    key_added: str | None = None,
    table_key: str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
    copy: bool = False,
) -> Any:
    r"""Remove from one view what differs between samples.

    Sections that were stained, sequenced or cut on different days differ for no biological reason, and a method that
    learns from all of them learns these differences first. Each view is corrected on its own, before anything is
    fused:

    - **Harmony** moves the rows of `obsm[rep]` so that soft clusters hold all batches alike. For any view.
    - **Scanorama** finds observations of two batches that are each other's nearest and moves one batch along the
      differences of such pairs, smoothed by a Gaussian kernel. For any view; batches that match no other one stay.
    - **scVI** does not touch `obsm[rep]`: it learns a representation of its own from raw counts, with the batch as an
      input of the decoder, so that the representation need not hold it. For expression only.

    What is the same for all observations of a batch can't be told from what the batch does to them: do not correct for a
    column that is the question, such as the donor's disease.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData. In a MuData, `rep` is looked for in the global `obsm` and in that of each
        modality.
    rep
        Key of the features in `obsm`, n x d; a row of NaN = this view is missing there. Harmony and Scanorama expect
        principal components or another code whose directions matter alike. scVI needs no such features, only the
        name: where they are there, their width and their missing rows are taken over.
    batch_key
        Column of `obs` that says which sample (section, slide, donor) an observation comes from.
    method
        `"harmony"`, `"scvi"` or `"scanorama"`. A parameter of another method is refused.
    theta
        Harmony: how strongly clusters are made to hold all batches alike. None = 2. 0 does **not** switch the
        correction off: clusters are then found without regard to batches, and batches are still moved together in each.
    sigma
        Scanorama: inverse width of the kernel, :math:`w = \exp(-\sigma \lVert x - y \rVert^2 / 2)` with distances in
        units of the root mean square distance from the mean; smaller is smoother. None = 15.
    knn
        Scanorama: number of nearest neighbours that are compared, no more than the second largest batch has
        observations. None = 20.
    n_layers
        scVI: hidden layers of encoder and decoder. None = 1.
    n_latent
        scVI: width of the result. None = as wide as `obsm[rep]`, or 20 where that is not there.
    max_epochs
        scVI: passes over the data. None = scvi-tools' rule, 400 up to 20,000 observations and fewer beyond.
    layer
        scVI: layer that holds the counts. None = `X`. All genes are used: choose them before.
    key_added
        Key of the result in `obsm` and of its record in `uns`. None = `f"{rep}_{method}"`.
    table_key
        SpatialData: which table.
    seed
        Seed of Harmony's clusters and of scVI's training. Scanorama draws no random numbers.
    device
        scVI: where it is trained, `"auto"` (a GPU where there is one), `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`.
    progress
        scVI: whether to show a progress bar. None = where a person looks on and it takes more than 2 seconds.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written are, in a MuData globally,

    - `obsm[key_added]`: n x d (scVI: n x n_latent), float32. A row of NaN = no features there, or no counts
    - `uns[key_added]`: the key that was corrected, the method and its parameters, seed, versions, the number of observations
      in each batch, and for scVI the loss of each epoch

    Raises
    ------
    KeyError
        If the features, the column, the layer or, in a MuData, the modality with the counts is missing.
    ValueError
        If the features are infinite or missing in part of a row, the column has missing values or a value of its own for
        each observation, a parameter belongs to another method or is out of its range, the counts are no counts, scVI
        is asked of image features, or `key_added` is the name of something else.
    TypeError
        If an argument is of the wrong type.
    ImportError
        If Scanorama is not installed: `pip install 'stfuse[correction]'`.

    Warns
    -----
    UserWarning
        If there is one batch only (Harmony and Scanorama then give the features back as they are), a batch has a single
        observation, observations have no counts, or Scanorama found no match for a batch.

    Notes
    -----
    The searched values of the cross-sample study are `theta` 0, 0.5, 1, 2, 4, 6, 8, `sigma` 10, 15, 20, 25 and `n_layers` 1
    to 4.

    Results of Harmony depend on the order of the observations, which decides in what blocks they are updated; they don't
    depend on the order or names of batches. Its number of clusters is a thirtieth of that of the observations, 1 to 100.
    Scanorama gets the batches largest first and second largest last, whatever their names. Its kernel is meant
    for rows of length about one; on principal components as they are, whose lengths are tens, it would be so narrow that hardly
    anything but the matched observations moved. The features are therefore centred and divided by their root mean square length
    first, and multiplied by it afterwards. Up to 10,000 observations neighbours are searched exactly.

    References: Korsunsky et al. (2019) for Harmony, Hie et al. (2019) for Scanorama, Lopez et al. (2018) for scVI.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.pp.rna_features(adata, n_comps=20, batch_key="section")
    >>> stfuse.pp.correct_batch(adata, "X_pca", batch_key="section")
    >>> adata.obsm["X_pca_harmony"].shape
    (1627, 20)
    >>> adata.uns["X_pca_harmony"]["params"]
    {'theta': 2.0}
    """
    given: dict[str, Any] = {"theta": theta, "sigma": sigma, "knn": knn, "n_layers": n_layers}
    given |= {"n_latent": n_latent, "max_epochs": max_epochs, "layer": layer}
    correction = make_correction(method, given, seed=seed, device=device, progress=progress)
    for name, text in (("rep", rep), ("batch_key", batch_key)):
        check_text(name, text)
    check_flag("copy", copy)
    key = f"{rep}_{method}" if key_added is None else key_added
    box: Any = _read.container(data, table_key)
    _check_key(box, key, rep)
    if copy:
        _record.check_copy(data)
    batches = read_batches(data, batch_key, table_key)
    if method == "scvi":
        result, record = _from_counts(data, rep, batches, correction, table_key)
    else:
        result, record = correct_features(_features(data, rep, table_key), batches, correction, rep)
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm={key: result}, uns={key: record}, table_key=table_key)
    return target if copy else None


def make_correction(
    method: str, given: dict[str, Any], *, seed: int, device: str = "auto", progress: bool | None = None
) -> Correction:
    """Check all that concerns the method alone: parameters, seed, device, and whether it is installed."""
    check_method(method)
    params = resolve(method, given)
    check_seed(seed)
    check_flag("progress", progress, optional=True)
    if method == "scvi":
        from stfuse.train._fit import resolve_device

        resolve_device(device)
    if method == "scanorama":
        from stfuse.pp._correct._scanorama import require_scanorama

        require_scanorama()
    return Correction(method, params, int(seed), device, progress)


def read_batches(data: Any, batch_key: str, table_key: str | None) -> Batches:
    """Read which batch each observation belongs to."""
    box = _read.container(data, table_key)
    if box.n_obs == 0:
        raise ValueError("There are no observations.")
    _read.check_names(box.obs_names, "the data")
    codes, names = _read.read_codes(_read.read_column(data, batch_key, table_key), batch_key, "batch_key")
    return Batches(batch_key, codes, names)


def _check_key(box: Any, key: str, rep: str) -> None:
    inputs = {"rep": rep, "coordinates": _keys.SPATIAL}
    check_target(box, "key_added", key, slots=("obsm", "uns"), mark=MARK, inputs=inputs)
    hiding = holders(box, key)
    if hiding:
        raise ValueError(
            f"key_added={key!r}: mdata[{hiding[0]!r}].obsm[{key!r}] is there already and would be read instead of the "
            "result, which is written into the global obsm. Choose another name, or delete it first."
        )


def holders(box: Any, key: str) -> list[str]:
    """Modalities of a MuData in whose own `obsm` a key is."""
    return [name for name, modality in box.mod.items() if key in modality.obsm] if _read.is_mudata(box) else []


def _features(data: Any, rep: str, table_key: str | None) -> np.ndarray:
    box: Any = _read.container(data, table_key)
    if rep not in box.obsm and not holders(box, rep):
        there = list(box.obsm.keys())
        if _read.is_mudata(box):
            there = list(dict.fromkeys([*there, *(key for m in box.mod.values() for key in m.obsm.keys())]))
        raise KeyError(
            f"No obsm[{rep!r}].{did_you_mean(rep, there)} There is {_read.listing(there)}. stfuse.pp.rna_features writes "
            "'X_pca', stfuse.pp.image_features 'X_image'; stfuse.pp.recipe_cross_sample makes and corrects both."
        )
    values = _read.read_rep(data, rep, table_key)
    if values.shape[1] == 0:
        raise ValueError(f"obsm[{rep!r}] has no columns.")
    return values


def _from_counts(
    data: Any, rep: str, batches: Batches, correction: Correction, table_key: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    box: Any = _read.container(data, table_key)
    found = holders(box, rep)
    if rep == _keys.IMAGE or rep.startswith(f"{_keys.IMAGE}_") or found == ["image"]:
        raise ValueError(
            f"rep={rep!r} are image features, and {TITLES['scvi']} is a model of counts: use method='harmony' for them."
        )
    source = _with_counts(box, rep, found)
    counts, _, present = present_counts(source, correction.params["layer"], mend=mend(source), whole=True)
    rows = np.zeros(box.n_obs, dtype=bool)
    rows[box.obs_names.get_indexer(source.obs_names)] = present
    order = np.argsort(box.obs_names.get_indexer(source.obs_names[present]))
    counts = counts[order]
    width = WIDTH
    if rep in box.obsm or found:
        values = _features(data, rep, table_key)
        has = _read.check_values(values, f"obsm[{rep!r}]")
        width, counts, rows = values.shape[1], counts[has[rows]], rows & has
    params = correction.params | {"n_latent": correction.params["n_latent"] or width}
    chosen = Correction("scvi", params, correction.seed, correction.device, correction.progress)
    return correct_counts(counts, rows, batches, chosen, rep)


def _with_counts(box: Any, rep: str, found: list[str]) -> AnnData:
    """Find the AnnData that holds the counts behind ``rep``."""
    if not _read.is_mudata(box):
        return box
    name = found[0] if len(found) == 1 else "rna"
    if name not in box.mod:
        raise KeyError(
            f"obsm[{rep!r}] is in no modality of its own, and the MuData has no modality 'rna' to take counts from; it "
            f"has {_read.listing(box.mod)}."
        )
    return box.mod[name]


def mend(source: AnnData, who: str = "scVI") -> str:
    """Say what to do where there are no counts."""
    layers = [str(name) for name in source.layers.keys() if name is not None]
    there = f"Layers there: {_read.listing(layers)}." if layers else "There are no layers."
    return f"{who} starts from raw counts: put them into X, or name the layer that holds them with layer=. {there}"
