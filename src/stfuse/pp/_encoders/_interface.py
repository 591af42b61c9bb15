"""What the rest of the package asks of an encoder, and the check of what it gives."""

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Encoder(Protocol):
    """Turns crops (b x h x w x 3, uint8, not always square) into features (b x d, float32).

    - `name`: goes into the record
    - `n_features`: width of the result; None = known after the first batch
    - `input_size`: side in pixels to which it resizes crops; None = it takes crops of any size as they are
    - `feature_names`: one name for each feature, or None
    - `record`: where the weights come from, the embedding and the precision, as h5ad can store it
    - `token`: equal tokens = equal features, hence work that can be resumed; None = nobody can tell
    """

    name: str
    n_features: int | None
    input_size: int | None
    feature_names: list[str] | None
    record: dict[str, Any]
    token: str | None

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Turn crops into features."""
        ...


class GivenEncoder:
    """A user's own object with `name`, `n_features` and a call from uint8 crops to features."""

    input_size: int | None = None
    token: str | None = None

    def __init__(self, given: Any) -> None:
        self.given = given
        self.name = str(given.name)
        self.n_features: int | None = given.n_features
        names = getattr(given, "feature_names", None)
        self.feature_names: list[str] | None = None if names is None else [str(name) for name in names]
        self.record: dict[str, Any] = {"source": "user"}

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Let the object turn crops into features."""
        return check_features(self.given(crops), self.name, len(crops))


def check_features(features: Any, name: str, n: int) -> np.ndarray:
    """Refuse what is not one row of finite numbers for each of ``n`` crops; give it as float32."""
    try:
        checked = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Encoder {name!r} must give one row of numbers for each crop, but its result is of type "
            f"{type(features).__name__}."
        ) from error
    if checked.ndim != 2 or len(checked) != n:
        raise ValueError(
            f"Encoder {name!r} must give one row of features for each of the {n} crops, but its result has the "
            f"shape {checked.shape}."
        )
    if not np.isfinite(checked).all():
        raise ValueError(f"Encoder {name!r} gave values that are not finite.")
    return checked
