"""Sentences of the report that depend on what came out."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stfuse._demo._tour import FUSED, MIN_TARGETS

if TYPE_CHECKING:
    from stfuse._demo._tour import Settings, Tour

# differences between two domain scores that repeated clusterings show as well
NOISE = 0.03


def percent(share: float) -> str:
    """Write a share as whole per cent."""
    return f"{100 * share:.0f} %"


def signed(value: float, digits: int = 1) -> str:
    """Write a number with its sign, a true minus and no negative zero."""
    return f"{round(float(value), digits) + 0.0:+.{digits}f}".replace("-", "−")


def enumeration(items: list[str]) -> str:
    """Join items as in a sentence."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def score_words(scores: pd.DataFrame) -> str:
    """Say plainly who agrees most with the known layers."""
    ours = scores.loc[FUSED, "ARI"]
    others = scores["ARI"].drop(FUSED).sort_values(ascending=False)
    name, best = others.index[0].replace("Side", "both side"), others.iloc[0]
    numbers = f"(adjusted Rand index {ours:.2f} against {best:.2f})"
    if ours > best + NOISE:
        verdict = (
            f"The fused code agrees with the known layers more than any of the others {numbers}; next comes {name}."
        )
    elif ours < best - NOISE:
        verdict = f"Here it does not help: the domains of {name} agree with the known layers more than the fused ones {numbers}."
    else:
        verdict = f"The fused code agrees with the known layers as much as the best of the others, {name} {numbers}, and no more."
    worse = [n.replace("Side", "both side") for n, v in others.items() if ours > v + NOISE]
    beaten = f" It is ahead of {enumeration(worse)}." if worse and ours <= best + NOISE else ""
    return (
        "The same clustering was run on the RNA alone, on the image alone, on both put side by side without learning, "
        f"and on the fused code. {verdict}{beaten}"
    )


def number_words(by_number: pd.DataFrame) -> str:
    """Say whether the winner depends on how many domains are asked for."""
    winners = by_number.idxmax()
    each = enumeration([f"{winners[k]} with {k} domains" for k in by_number.columns])
    if winners.nunique() == 1:
        return f"The best is the same however many domains are asked for: {winners.iloc[0]}."
    return (
        f"Who comes first depends on how many domains are asked for: {each}. A difference that turns with the number is no "
        "reason to prefer one."
    )


def held_out(record: Mapping[str, Any]) -> pd.Series | None:
    """Share of candidates nearer than the partner of a held-out pair (geometric mean): linear start at 0, then each epoch."""
    history, report = record.get("history"), record.get("report", {})
    if history is None or "held_out_rank" not in history or "held_out_gain" not in report:
        return None
    rank = pd.concat(
        [pd.Series({0: history["held_out_rank"].min() + report["held_out_gain"]}), history["held_out_rank"]]
    )
    # the recorded score is log(share + 0.01)
    return (np.exp(rank) - 0.01).clip(lower=0.0)


def fusion_words(record: Mapping[str, Any], settings: Settings) -> str:
    """Say what was learned from, and what held-out pairs said."""
    words = f"CAMEO learned from {int(record['n_obs']['paired']):,} spots with both views. "
    kept, curve = int(record["report"].get("epochs_kept", 0)), held_out(record)
    if curve is None:
        return words + "No training beat the closed-form linear start on held-out pairs, so that start is the result."
    words += (
        "It starts from a linear fusion in closed form. One pair in five was hidden: where does the true partner of a hidden "
        f"patch rank among all candidates? With the linear start {share(curve.iloc[0])} of them come before it (a geometric mean), with "
        f"the network {share(curve.min())}. "
    )
    if not kept:
        return words + "That is too little to be sure of, so the linear start is the result."
    words += f"That is more than chance explains, so the network was trained again on all pairs, for {kept} epochs."
    if settings.max_epochs is not None and kept >= settings.max_epochs - 1:
        words += f" Training was cut at {settings.max_epochs} epochs to keep the demo short; with the default number it still gains a little."
    return words


def share(value: float) -> str:
    """Write a small share as per cent with one digit."""
    return f"{100 * value:.1f} %"


def pathway_words(tour: Tour) -> str:
    """Say how thin the evidence of each pathway is, and what the strongest one does."""
    used, left = tour.targets[tour.targets >= MIN_TARGETS], tour.targets[tour.targets < MIN_TARGETS]
    top = tour.pathways[tour.top_pathway]
    agree = bool(tour.unanimous.loc[[top.idxmax(), top.idxmin()], tour.top_pathway].all())
    words = (
        f"<b>Few genes carry this.</b> A PROGENy pathway has 100 genes; of the {tour.adata.n_vars:,} genes measured here only "
        f"{used.min()} to {used.max()} belong to each of the {len(used)} pathways that are scored (at least {MIN_TARGETS} asked for)."
    )
    if len(left):
        listed = enumeration([f"{escape(name)} ({n})" for name, n in left.items()])
        words += f" Left out for want of genes: {listed}."
    words += (
        f" In single spots {percent((tour.padj.to_numpy() < 0.05).mean())} of the scores stand out (adjusted p below 0.05), so trust the averages over "
        "a domain more than any spot, and a whole transcriptome more than either."
    )
    words += (
        f" The largest difference is {escape(tour.top_pathway)}: highest in {top.idxmax()} ({signed(top.max(), 2)}), lowest in "
        f"{top.idxmin()} ({signed(top.min(), 2)}), and the sections "
        + ("all agree on both signs." if agree else "do not all agree on the signs.")
    )
    return words


def search_words(tour: Tour) -> str:
    """Say how well image patches find RNA of their own layer, and what that is worth."""
    total = tour.search.loc["All spots"]
    best, worst = (getattr(tour.search["hit"].drop("All spots"), f)() for f in ("idxmax", "idxmin"))
    return (
        "Image and RNA codes live in one space, so a patch of the photograph can ask for the spots whose RNA looks most like "
        "it. To make it fair, a spot may only find spots of <em>other</em> sections. Of the "
        f"{tour.settings.n_neighbors} nearest, {percent(total['hit'])} lie in the same layer as the patch, where chance gives "
        f"{percent(total['chance'])}; it works best for {escape(best)} and worst for {escape(worst)}. All four sections were used in training, "
        "so a section never seen before would do less well."
    )
