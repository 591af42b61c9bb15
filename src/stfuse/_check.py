"""Checks of arguments, and the words in which they are refused: name, what it must be, and what was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

LARGEST_SEED = 2**32 - 1


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is not True or False (or, if ``optional``, None): "no" would count as True."""
    if (optional and value is None) or isinstance(value, bool | np.bool_):
        return
    raise TypeError(f"{name} must be True{', False or None' if optional else ' or False'}, got {value!r}.")


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Refuse what is not a finite number (or, if ``optional``, None), or not in its range.

    ``least`` and ``most`` belong to the range, ``above`` does not. Text is no number, and 3.0 is no whole one.
    """
    if optional and value is None:
        return
    given = (("of at least", least), ("above", above), ("of at most", most))
    bounds = " and ".join(f"{word} {_plain(bound)}" for word, bound in given if bound is not None)
    if least is not None and most is not None:
        bounds = f"between {_plain(least)} and {_plain(most)}"
    wanted = f"a {'whole ' if whole else ''}number {bounds}".rstrip() + (" or None" if optional else "")
    message = f"{name} must be {wanted}, got {value!r}."
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral if whole else Real):
        raise TypeError(message)
    number = float(value)
    inside = (least is None or number >= least) and (above is None or number > above)
    if not (np.isfinite(number) and inside and (most is None or number <= most)):
        raise ValueError(message)


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def check_seed(seed: Any) -> None:
    """Refuse what no random generator takes."""
    check_number("seed", seed, least=0, most=LARGEST_SEED, whole=True)


def check_text(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is no name of a key or column: no text, or an empty one."""
    if optional and value is None:
        return
    message = f"{name} must be a string{' or None' if optional else ''}, got {value!r}."
    if not isinstance(value, str):
        raise TypeError(message)
    if not value:
        raise ValueError(message.replace("a string", "a non-empty string"))


def check_target(
    box: Any,
    name: str,
    key: str,
    *,
    slots: Iterable[str],
    mark: str,
    inputs: Mapping[str, str | None],
    default: str | None = None,
) -> None:
    """Refuse to write results over what a call reads, and over what is not a result of its kind.

    ``key``, given as the argument ``name``, is looked up in the ``slots`` ("obs", "obsm", "uns") of the object.
    ``mark`` is an entry of the record in ``uns`` by which a result of this kind is told; such a result is replaced, and
    so is whatever has the ``default`` name. ``inputs`` are the keys that the call reads, by the argument that names them.
    """
    check_text(name, key)
    if "/" in key:
        raise ValueError(f"{name}={key!r} holds a slash, which h5ad cannot store: choose another name.")
    for argument, read in inputs.items():
        if read is not None and key == read:
            raise ValueError(f"{name}={key!r} would overwrite what is read as {argument}: choose another name.")
    record = box.uns.get(key)
    own = isinstance(record, Mapping) and mark in record
    taken = [slot for slot in slots if key in getattr(box, slot)]
    if taken and not own and key != default:
        raise ValueError(
            f"{name}={key!r} would overwrite {taken[0]}[{key!r}], which this function did not write: choose another "
            "name, or delete it first."
        )


def did_you_mean(key: Any, names: Iterable[Any]) -> str:
    """Name what is there and nearest to a key that is not, as a sentence with a space before it; else nothing."""
    found = difflib.get_close_matches(str(key), list(dict.fromkeys(map(str, names))), n=1, cutoff=0.7)
    if not found:
        lower = {str(name).lower(): str(name) for name in names}
        found = [lower[str(key).lower()]] if str(key).lower() in lower else []
    return f" Did you mean {found[0]!r}?" if found else ""
