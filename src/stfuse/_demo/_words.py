"""Sentences of the report that depend on what came out."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stfuse._demo._tour import (
    FUSED,
    INDIVIDUAL,
    LAYER,
    LAYER_NAMES,
    MIN_TARGETS,
    SINGLE,
    SURROUNDINGS,
    TOGETHER,
)

if TYPE_CHECKING:
    from stfuse._demo._tour import Tour

# differences between two domain scores that repeated clusterings show as well
NOISE = 0.03
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
IN_A_SENTENCE = {
    TOGETHER: "both side by side",
    SURROUNDINGS: "both averaged over neighbours",
    "Image alone": "the image alone",
    FUSED: "the fused code",
}
AT_LENGTH = {
    "RNA alone": "the RNA alone",
    TOGETHER: "both put side by side without learning",
    SURROUNDINGS: "the same averaged over the neighbours of each spot",
}


def percent(share: float) -> str:
    """Write a share as whole per cent; a little is not nothing."""
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def signed(value: float, digits: int = 1) -> str:
    """Write a number with its sign, a true minus and no negative zero."""
    return f"{round(float(value), digits) + 0.0:+.{digits}f}".replace("-", "−")


def plain(value: float, digits: int = 3) -> str:
    """Write a number with a true minus and no negative zero."""
    return signed(value, digits).removeprefix("+")


def enumeration(items: list[str]) -> str:
    """Join items as in a sentence."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def score_words(scores: pd.DataFrame) -> str:
    """Say plainly who agrees most with the known layers."""
    ours = scores.loc[FUSED, "ARI"]
    others = scores["ARI"].drop(FUSED).sort_values(ascending=False)
    name, best = said(others.index[0]), others.iloc[0]
    numbers = f"(adjusted Rand index {ours:.2f} against {best:.2f})"
    if ours > best + NOISE:
        verdict = (
            f"The fused code agrees with the known layers more than any of the others {numbers}; next comes {name}."
        )
    elif ours < best - NOISE:
        verdict = f"Here it does not help: the domains of {name} agree with the known layers more than the fused ones {numbers}."
    else:
        verdict = f"The fused code agrees with the known layers as much as the best of the others, {name} {numbers}, and no more."
    worse = [said(n) for n, v in others.items() if ours > v + NOISE]
    beaten = f" It is ahead of {enumeration(worse)}." if worse and ours <= best + NOISE else ""
    ways = enumeration([f"on {AT_LENGTH.get(name, said(name))}" for name in scores.index])
    return f"The same clustering was run {ways}. {verdict}{beaten}{other_score_words(scores)}"


def said(name: str) -> str:
    """Give the name of a way of finding domains as it stands inside a sentence."""
    return IN_A_SENTENCE.get(name, name)


def other_score_words(scores: pd.DataFrame) -> str:
    """Say so where the second score has another winner."""
    if "NMI" not in scores or scores["NMI"].idxmax() == scores["ARI"].idxmax():
        return ""
    first = scores["NMI"].idxmax()
    against = scores["ARI"].idxmax()
    return (
        f" The second score, normalised mutual information, puts {said(first)} first ({scores['NMI'].max():.2f} against "
        f"{scores.loc[against, 'NMI']:.2f} for {said(against)})."
    )


def in_short(tour: Tour) -> list[str]:
    """Say in a few lines what came out."""
    scores = tour.comparison["ARI"]
    single, unlearned = scores[list(SINGLE)], scores.drop([FUSED, *SINGLE])
    gains = tour.by_number.loc[FUSED] - tour.by_number.loc[single.index].max()
    better, worse = bool((gains > NOISE).any()), bool((gains < -NOISE).any())
    verdict = {
        (True, False): "as much as or more than",
        (False, True): "as much as or less than",
        (True, True): "now more, now less than",
    }
    top = tour.pathways[tour.top_pathway]
    lines = [
        domain_words(tour),
        f"They agree with the known layers {verdict.get((better, worse), 'as much as')} domains of {said(str(single.idxmax()))}, the better single "
        f"view (adjusted Rand index {scores[FUSED]:.2f} against {single.max():.2f} with {tour.settings.n_clusters} domains; "
        '<a href="#comparison">other numbers of domains</a> are part of the picture). '
        f"{said(str(unlearned.idxmax())).capitalize()}, without learning, reach {unlearned.max():.2f}.",
        f"{escape(tour.top_pathway)} is the pathway that differs most between domains: lowest in {tour.label(top.idxmin())}, highest in "
        f"{tour.label(top.idxmax())}. It rests on {tour.targets[tour.top_pathway]} genes.",
    ]
    if INDIVIDUAL in tour.comparison:
        follows = tour.comparison.loc[FUSED, INDIVIDUAL]
        mice = NUMBERS.get(tour.individuals, tour.individuals)
        lines.insert(2, f"The sections come from {mice} mice, and domains {individual_verdict(follows)}.")
    if not tour.search.empty:
        total = tour.search.loc["All spots"]
        lines.append(
            f"A patch of the photograph finds RNA of its own layer in other sections {percent(total['hit'])} of the time; chance is {percent(total['chance'])}."
        )
    return lines


def individual_verdict(ari: float) -> str:
    """Say whether domains tell individuals apart."""
    does = "do not tell" if ari < NOISE else "also tell"
    return f"{does} them apart (adjusted Rand index with the individual {plain(ari)}; 0 is chance)"


def individual_words(scores: pd.DataFrame, individuals: int) -> str:
    """Say how far domains follow the individual instead of the tissue."""
    others = scores[INDIVIDUAL].drop(FUSED)
    return (
        f"The sections come from {NUMBERS.get(individuals, individuals)} mice. Domains should follow the tissue and not the mouse, "
        f"so here lower is better. Those of the fused code {individual_verdict(scores.loc[FUSED, INDIVIDUAL])}; the others lie between {plain(others.min())} and {plain(others.max())}."
    )


def domain_words(tour: Tour) -> str:
    """Say which layer each domain follows, and how closely."""
    inside = pd.crosstab(tour.domains, tour.adata.obs[LAYER], normalize="index")
    found = [
        f"{domain} the {escape(LAYER_NAMES.get(layer, layer))} ({layer}, {percent(inside.loc[domain, layer])} of its spots)"
        for domain, layer in sorted(tour.partner.items())
    ]
    alone = [str(name) for name in tour.domains.cat.categories if name not in tour.partner]
    rest = f"; {enumeration(alone)} ({int(tour.domains.isin(alone).sum())} spots) follows none" if alone else ""
    return f"Domains follow the layers of the bulb: {enumeration(found)}{rest}."


def neighbour_words(tour: Tour) -> str:
    """Say which domains meet, which avoid each other, and whether the layers are nested."""
    z = tour.enrichment
    pairs = pd.Series({(a, b): (z.loc[a, b] + z.loc[b, a]) / 2 for i, a in enumerate(z) for b in list(z)[i + 1 :]})
    close, far = (tuple(map(tour.label, getattr(pairs, f)())) for f in ("idxmax", "idxmin"))
    words = (
        "For each pair of domains squidpy counts how often their spots touch and compares that with shuffled domains "
        f"in the same section. Of different domains, {close[0]} and {close[1]} meet most (z&nbsp;=&nbsp;{signed(pairs.max())}), "
        f"{far[0]} and {far[1]} least (z&nbsp;=&nbsp;{signed(pairs.min())})."
    )
    place = {domain: tour.layer_order.index(layer) for domain, layer in tour.partner.items()}
    steps = pd.Series({(a, b): abs(place[a] - place[b]) for a, b in pairs.index if a in place and b in place})
    near, apart = pairs[steps.index[steps == 1]].mean(), pairs[steps.index[steps > 1]].mean()
    if np.isfinite(near) and np.isfinite(apart):
        verdict = "as nested rings should" if near > apart else "which nested rings should not do"
        words += (
            f" Layers that follow each other have a mean z of {signed(near)}, others {signed(apart)}: "
            f"{'neighbours' if near > apart else 'strangers'} meet more, {verdict}."
        )
    return words


def number_words(by_number: pd.DataFrame) -> str:
    """Say whether the winner depends on how many domains are asked for."""
    winners = by_number.idxmax()
    each = enumeration([f"{said(winners[k])} with {k} domains" for k in by_number.columns])
    if winners.nunique() == 1:
        return f"The best is the same however many domains are asked for: {said(winners.iloc[0])}."
    return (
        f"Who comes first depends on how many are asked for: {each}. A difference that turns with the number is no "
        "reason to prefer one."
    )


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
        f" The largest difference is {escape(tour.top_pathway)}: highest in {tour.label(top.idxmax())} ({signed(top.max(), 2)}), lowest in "
        f"{tour.label(top.idxmin())} ({signed(top.min(), 2)}), and the sections "
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
