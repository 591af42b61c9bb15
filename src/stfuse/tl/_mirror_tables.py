"""What MIRROR reads from slides and tiles, wherever these are kept, and what it writes into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._check import did_you_mean
from stfuse._log import warn
from stfuse._slides import check_anndata, column_of, slide_names
from stfuse.tl._write_both import Written

METHOD = "mirror"  # by which the records of this function are told
LOUD = 50.0  # a whole number so large is a count, and no logarithm


class SlideTables(NamedTuple):
    """The tables of slides and of tiles; in a SpatialData or MuData their names."""

    slides: AnnData
    tiles: AnnData
    slides_name: str | None = None
    tiles_name: str | None = None


def find_slides(
    slides: Any, tiles: Any, slide_key: str, slides_table: str | None, tiles_table: str | None
) -> SlideTables:  # fmt: skip
    """Find both tables: two AnnData as they are given, tables of a SpatialData, or modalities of a MuData."""
    inside = _read.is_spatialdata(slides) or _read.is_mudata(slides)
    if not inside:
        for name, value in (("slides_table", slides_table), ("tiles_table", tiles_table)):
            if value is not None:
                raise ValueError(
                    f"{name}= names a table of a SpatialData or a modality of a MuData, and slides is a {type(slides).__name__}."
                )
        check_anndata("slides", slides)
        if tiles is None:
            raise ValueError("tiles= is missing: it goes with an AnnData of slides.")
        check_anndata("tiles", tiles)
        return SlideTables(slides, tiles)
    what = "modality" if _read.is_mudata(slides) else "table"
    if tiles is not None:
        raise ValueError(f"tiles= goes with an AnnData of slides: the {what} of tiles is named by tiles_table=.")
    held = dict(slides.mod if _read.is_mudata(slides) else slides.tables)
    name = _pick(held, tiles_table, "tiles_table", what, [n for n, table in held.items() if slide_key in table.obs], f"with a column {slide_key!r} (slide_key)")  # fmt: skip
    known = set(slide_names(held[name], slide_key, name)[1])
    own = [n for n, table in held.items() if n != name and known & set(table.obs_names)]
    other = _pick(held, slides_table, "slides_table", what, own, f"whose names are those in {name!r}'s {slide_key!r}")
    return SlideTables(held[other], held[name], other, name)


def _pick(held: Mapping[str, Any], given: str | None, argument: str, what: str, fitting: list[str], kind: str) -> str:
    if given is not None:
        if given not in held:
            raise KeyError(
                f"No {what} {given!r} ({argument}).{did_you_mean(given, held)} There is {_read.listing(held)}."
            )
        return given
    if len(fitting) != 1:
        raise KeyError(
            f"{'Several' if fitting else 'No'} {what}{'s' if fitting else ''} {kind}: name it by {argument}=. There is "
            f"{_read.listing(held)}."
        )
    return fitting[0]


def check_names(tables: SlideTables, key: str, keys: Mapping[str, str | None]) -> None:
    """Refuse names under which something else is kept, or that the call reads."""
    slots = _keys.slots(key)
    read = {_keys.SPATIAL, *keys.values()}
    slides, tiles = results_of(key)
    for where, table, written in (("slides", tables.slides, slides), ("tiles", tables.tiles, tiles)):
        record: Any = table.uns.get(key)
        own = isinstance(record, Mapping) and record.get("method") == METHOD
        foreign = [f"{where}.uns[{key!r}]"] if record is not None else []
        foreign += [f"{where}.{slot}[{name!r}]" for slot, name in written if name in getattr(table, slot)]
        clash = [name for name in (slots.record, *(name for _, name in written)) if name in read]
        if clash or (foreign and not own):
            what = f"{clash[0]!r}, which is read" if clash else f"{foreign[0]}, which this function did not write"
            raise ValueError(f"key_added={key!r} would overwrite {what}: choose another name, or delete it first.")


def results_of(key: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Slots and names written into slides and into tiles."""
    slots = _keys.slots(key)
    codes = [("obsm", name) for name in (slots.fused, slots.image, slots.rna, slots.private_image, slots.private_rna)]
    return [*codes, ("obs", f"{key}_prototype")], [("obs", f"{key}_attention")]


def private_slides(slides: AnnData, keys: Mapping[str, str | None]) -> AnnData:
    """Slides with what is read and nothing else, as scvi-tools leaves its bookkeeping in them."""
    columns = {name: column_of(slides, "slides", argument, name) for argument in ("groups", "paired_key") if (name := keys[argument])}  # fmt: skip
    whole = keys["rna_key"] is None
    few = AnnData(
        slides.X if whole else None, obs=pd.DataFrame(columns, slides.obs_names), var=slides.var if whole else None
    )
    if keys["rna_key"] is not None:
        few.obsm.update(_entry_or_all(slides, keys["rna_key"]))
    return few


def _entry_or_all(adata: AnnData, key: str) -> dict[str, Any]:
    """An entry of ``obsm``; where it is not there all of them, which the message that follows will name."""
    return {key: adata.obsm[key]} if key in adata.obsm else dict(adata.obsm)


def private_tiles(data: Any, tables: SlideTables, slide_key: str, image_key: str) -> tuple[AnnData, dict[str, Any]]:
    """Tiles with what is read, and features that were made because the default key was not there."""
    tiles = tables.tiles
    column = column_of(tiles, "tiles", "slide_key", slide_key)
    names = tiles.obs_names if tiles.obs_names.is_unique else pd.RangeIndex(tiles.n_obs).astype(str)
    few = AnnData(obs=pd.DataFrame({slide_key: column.array}, names))
    inside = _read.is_spatialdata(data)
    has_image = bool(tiles.uns.get("spatial")) or (inside and len(data.images) > 0)
    if image_key in tiles.obsm or image_key != _keys.IMAGE or not has_image:
        few.obsm.update(_entry_or_all(tiles, image_key))
        return few, {}
    from stfuse.pp._default_views import make_view

    features, _ = make_view(data if inside else tiles, "image", image_key, None, tables.tiles_name if inside else None)
    few.obsm[image_key] = features
    return few, {"obsm": {image_key: features}}


def tell(views: Any, rna_key: str | None) -> None:
    """Warn of what takes no part, or only half."""
    counts = views.counts()
    for what, has, rest in (
        ("tiles with features", views.has_image, "their RNA"),
        ("RNA", views.has_rna, "their tiles"),
    ):
        n = int((~has).sum())
        if n:
            example = views.names[~has][0]
            warn(
                f"{n} of {counts['total']} slide(s) have no {what} (for example {example!r}): they take part with {rest} and are no pairs."
            )
    tell_read(views, rna_key)


def tell_read(views: Any, rna_key: str | None) -> None:
    """Warn of tiles that no slide takes, and of counts."""
    counts = views.counts()
    if counts["tiles_of_unknown_slides"]:
        warn(
            f"{counts['tiles_of_unknown_slides']} of {views.slide.size} tile(s) are of slides that are not in slides.obs_names: they are left "
            "out. To train on tiles without RNA, give slides a row of NaN for each."
        )
    genes = views.genes[views.has_rna]
    if rna_key is None and genes.max() >= LOUD and (genes >= 0).all() and (genes[:100] == np.round(genes[:100])).all():
        warn(
            "slides.X looks like counts: bring it to a logarithm first (scanpy.pp.normalize_total, scanpy.pp.log1p), or the loudest genes "
            "and the depth of a sample decide."
        )


def results(
    model: Any, views: Any, key: str, record: dict[str, Any], tables: SlideTables, made: dict[str, Any]
) -> list[Written]:  # fmt: skip
    """All that is written into the slides and into the tiles, with what was ``made`` of these."""
    codes = model.codes()
    slots = _keys.slots(key)
    report = {name: float(value) for name, value in model.report_.items()}
    record |= {"versions": _record.versions(), "n_obs": views.counts(), "report": report}
    history = pd.concat(list(model.history_.values()), axis=1)
    none = codes.prototype < 0
    names = np.where(none, _keys.UNASSIGNED, codes.prototype.astype(str))
    order = [*np.unique(codes.prototype[~none]).astype(str), *([_keys.UNASSIGNED] if none.any() else [])]
    to_slides = {
        "obsm": {
            slots.fused: codes.fused,
            slots.image: codes.image,
            slots.rna: codes.rna,
            slots.private_image: codes.private_image,
            slots.private_rna: codes.private_rna,
        },
        "obs": {f"{key}_prototype": pd.Categorical(names, order)},
        "uns": {key: record | {"history": history}},
    }
    to_tiles = made | {"obs": {f"{key}_attention": codes.attention}, "uns": {key: record}}
    return [
        Written(tables.slides, to_slides, name=tables.slides_name),
        Written(tables.tiles, to_tiles, name=tables.tiles_name),
    ]
