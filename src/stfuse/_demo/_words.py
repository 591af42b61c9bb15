"""Sentences of the report that depend on what came out."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from stfuse._demo._pipeline import MIN_TARGETS

if TYPE_CHECKING:
    from stfuse._demo._pipeline import Tour

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
    ours = scores.loc["Fused (CAMEO)", "ARI"]
    others = scores["ARI"].drop("Fused (CAMEO)").sort_values(ascending=False)
    name, best = others.index[0], others.iloc[0]
    numbers = f"(adjusted Rand index {ours:.2f} against {best:.2f})"
    if ours > best + NOISE:
        verdict = (
            f"The fused code finds the known layers better than any of the others {numbers}; next comes {name.lower()}."
        )
    elif ours < best - NOISE:
        verdict = f"Here it does not: domains from {name.replace('Side', 'both views side')} match the known layers better {numbers}."
    else:
        verdict = f"The fused code does as well as the best of the others, {name.lower()} {numbers}: on this tissue it gains nothing."
    worse = [n.lower() for n, v in others.items() if ours > v + NOISE]
    beaten = f" It is ahead of {enumeration(worse)}." if worse and ours <= best + NOISE else ""
    return (
        "The same clustering was run on the RNA alone, on the image alone, on both put side by side without learning, "
        f"and on the fused code. {verdict}{beaten}"
    )


def fusion_words(record: Mapping[str, Any]) -> str:
    """Say how many observations were learned from and for how long."""
    counts = record.get("n_obs", {})
    seen = f"{int(counts['paired']):,} spots with both views" if "paired" in counts else "all spots"
    return f"CAMEO learned from {seen}."


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
