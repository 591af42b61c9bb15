"""Classes in an ``obs`` column."""

from __future__ import annotations

import numpy as np
import pandas as pd


def read_classes(column: pd.Series, key: str, otherwise: str = "") -> tuple[np.ndarray, list[str]]:
    """Read a column of classes as codes (-1 = missing) and their names; unused categories are left out.

    Whole numbers are classes even where missing values made decimal ones of them; ``otherwise`` is what to do with
    true decimals, as the end of a message.
    """
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy(dtype=float, na_value=np.nan)
        if (np.isinf(values) | (values != np.rint(values)))[~np.isnan(values)].any():
            raise ValueError(
                f"obs[{key!r}] holds decimal numbers. For classes call .astype('category') on it{otherwise}."
            )
        column = pd.Series(values, index=column.index).astype("Int64")
    labels = pd.Categorical(column).remove_unused_categories()
    names = [str(c) for c in labels.categories]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ValueError(f"obs[{key!r}] has several categories that read {twice!r}, such as a number and its text.")
    return labels.codes.astype(np.int64), names
