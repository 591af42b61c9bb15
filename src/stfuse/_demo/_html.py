"""The few HTML elements that the report is made of."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Section:
    """One section of the page; ``body`` is HTML, ``short`` its name in the list of contents."""

    anchor: str
    short: str
    title: str
    body: str

    def html(self) -> str:
        """Render the section."""
        return f'<section id="{self.anchor}" aria-labelledby="{self.anchor}-title">\n<h2 id="{self.anchor}-title">{escape(self.title)}</h2>\n{self.body}\n</section>'


def page(title: str, head: str, sections: Sequence[Section], foot: str) -> str:
    """Put the whole page together; nothing in it is loaded from elsewhere."""
    style = (files("stfuse._demo") / "report.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.short)}</a></li>' for s in sections)
    # a number and its per cent stay on one line
    body, head = (text.replace(" %", "&nbsp;%") for text in ("\n".join(s.html() for s in sections), head))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
{head}
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>
{foot}
</footer>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """One paragraph of HTML text."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def bullets(items: Iterable[str]) -> str:
    """Make a list of HTML items."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def facts(pairs: Mapping[str, str]) -> str:
    """Show a few numbers large, each with what it counts."""
    return '<dl class="facts">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs.items()) + "</dl>"


def code(text: str) -> str:
    """Show lines of code."""
    return f'<pre tabindex="0"><code>{escape(text.strip())}</code></pre>'


def folded(title: str, body: str) -> str:
    """Hide details until they are asked for."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def picture(path: Path, alt: str, caption: str, kind: str = "") -> str:
    """Inline a PNG as WebP, a quarter of its size."""
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(path) as image:
        width, height = image.size
        image.convert("RGB").save(stream, "WEBP", quality=84, method=4)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    extra = f' class="{kind}"' if kind else ""
    return (
        f'<figure{extra}><img src="data:image/webp;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alt, quote=True)}"><figcaption>{caption}</figcaption></figure>'
    )


def table(data: pd.DataFrame, caption: str, corner: str = "") -> str:
    """Render a table of text and finished numbers; the index is its row headings."""
    numeric = [_is_number(data.iloc[:, j]) for j in range(data.shape[1])]
    kinds = [' class="number"' if n else "" for n in numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(str(c))}</th>' for c, kind in zip(data.columns, kinds, strict=True))
    rows = []
    for name, row in zip(data.index, data.itertuples(index=False), strict=True):
        cells = "".join(f"<td{kind}>{escape(str(v))}</td>" for v, kind in zip(row, kinds, strict=True))
        rows.append(f'<tr><th scope="row">{escape(str(name))}</th>{cells}</tr>')
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f'<caption>{escape(caption)}</caption><thead><tr><th scope="col">{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _is_number(column: pd.Series) -> bool:
    """Whether every entry reads as a number, so that the column is set flush right."""
    text = column.astype(str).str.strip(" %+s").str.replace(",", "").str.replace("−", "-")
    return bool(pd.to_numeric(text, errors="coerce").notna().all())
