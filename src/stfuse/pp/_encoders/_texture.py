"""An image encoder without weights: stain statistics and multi-scale texture of H&E crops."""

from importlib.metadata import version
from typing import Any

import numpy as np
from scipy import ndimage

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SIDE = 64  # pixels of a crop, about
_LEVELS = 3  # of the pyramid: details of about 1, 2 and 4 pixels
_RINGS = (0.0, 0.35, 0.7, np.inf)  # bounds of centre, middle and rim, in half crop sides
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))  # around a pixel, in circular order
_CHANNELS = ("hematoxylin", "eosin", "density")


class TextureEncoder:
    """Describe H&E crops by numbers that need no trained network.

    Haematoxylin and eosin are separated by colour deconvolution (Ruifrok and Johnston, 2001, with the stain
    vectors of scikit-image); `density` is the mean optical density of the three colours. Of these three channels come

    - mean, standard deviation and five quantiles (how much stain, how unevenly),
    - on three levels of an image pyramid, the mean and spread of the gradient's size and of the Laplacian, and
      the Laplacian's skewness (how coarse, how sharp, dark or bright blobs),
    - the means of centre, middle and rim of the crop,

    and of the density also histograms of rotation-invariant local binary patterns (Ojala et al., 2002) at two levels.
    Crops of 4 pixels and more are fine. Levels for which a small crop has no room are nearly constant. Crops of 96
    pixels and more are averaged down to about 64 first: at full resolution the same detail is looked at as in smaller
    images, and it takes no longer.
    """

    name = "texture"
    input_size: int | None = None
    preferred_size = _SIDE

    def __init__(self) -> None:
        self.feature_names: list[str] | None = _feature_names()
        self.n_features: int | None = len(self.feature_names)
        self.record: dict[str, Any] = {"source": "built in", "embedding": "stain and texture statistics"}
        self.token: str | None = f"texture of stfuse {version('stfuse')}"

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Turn b x h x w x 3 crops (uint8) into b x n_features features (float32)."""
        channels = stain_channels(_reduced(crops))
        parts = [_statistics(c) for c in channels] + [_ring_means(c) for c in channels]
        for channel in channels:
            level = channel
            for i in range(_LEVELS):
                smooth = ndimage.gaussian_filter(level, (0, 1, 1), mode="reflect")
                parts.append(_edges(smooth))
                if channel is channels[2] and i < 2:
                    parts.append(_binary_patterns(level))
                level = smooth[:, ::2, ::2]
        return np.concatenate(parts, axis=1, dtype=np.float32)


def _reduced(crops: np.ndarray) -> np.ndarray:
    """Average large crops down to about the usual side, by a whole factor; what is left over is cut off all around."""
    height, width = crops.shape[1:3]
    factor = round(min(height, width) / _SIDE)
    if factor < 2:
        return crops
    top, left = height % factor // 2, width % factor // 2
    rows, columns = height // factor, width // factor
    inner = crops[:, top : top + rows * factor, left : left + columns * factor]
    # first along rows, where numpy adds whole lines, then along columns: several times as fast as both at once
    sums = inner.reshape(len(crops), rows, factor, columns * factor, 3).sum(axis=2, dtype=np.uint32)
    sums = sums.reshape(len(crops), rows, columns, factor, 3).sum(axis=3, dtype=np.uint32)
    return np.rint(sums / np.float32(factor * factor)).astype(np.uint8)


def _feature_names() -> list[str]:
    statistics = ["mean", "sd", *(f"q{round(100 * q):02}" for q in _QUANTILES)]
    names = [f"{c}_{s}" for c in _CHANNELS for s in statistics]
    names += [f"{c}_{ring}" for c in _CHANNELS for ring in ("center", "middle", "rim")]
    for channel in _CHANNELS:
        for i in range(_LEVELS):
            edges = ("gradient_mean", "gradient_sd", "laplacian_mean", "laplacian_sd", "laplacian_skew")
            names += [f"{channel}_{edge}_{2**i}px" for edge in edges]
            if channel == "density" and i < 2:
                names += [f"pattern{k}_{2**i}px" for k in range(10)]
    return names


def stain_channels(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split b x h x w x 3 crops (uint8) into haematoxylin, eosin and mean optical density, each b x h x w (float32)."""
    from skimage.color import hed_from_rgb

    # The logarithm has only 256 different arguments. Units as in skimage.color.rgb2hed: powers of a millionth.
    table = (np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)).astype(np.float32)
    density = table[crops]
    stains = density @ hed_from_rgb[:, :2].astype(np.float32)
    np.maximum(stains, 0, out=stains)
    hematoxylin, eosin = np.ascontiguousarray(np.moveaxis(stains, -1, 0))
    return hematoxylin, eosin, density.mean(axis=-1)


def _statistics(channel: np.ndarray) -> np.ndarray:
    flat = np.sort(channel.reshape(len(channel), -1), axis=1)
    quantiles = flat[:, [round(q * (flat.shape[1] - 1)) for q in _QUANTILES]]
    return np.column_stack([flat.mean(axis=1), flat.std(axis=1), quantiles])


def _ring_means(channel: np.ndarray) -> np.ndarray:
    y, x = (np.linspace(-1, 1, n) for n in channel.shape[1:])
    radius = np.hypot(y[:, None], x[None]).ravel()
    masks = np.stack([(radius >= a) & (radius < b) for a, b in zip(_RINGS[:-1], _RINGS[1:], strict=True)], axis=1)
    masks[radius.argmin(), 0] = True  # a crop of 4 pixels has none inside the centre
    weights = (masks / np.maximum(masks.sum(axis=0), 1)).astype(np.float32)
    return channel.reshape(len(channel), -1) @ weights


def _edges(smooth: np.ndarray) -> np.ndarray:
    padded = np.pad(smooth, ((0, 0), (1, 1), (1, 1)), mode="edge")
    up, down = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
    left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    gradient = (np.hypot(down - up, right - left) / 2).reshape(len(smooth), -1)
    laplacian = (up + down + left + right - 4 * smooth).reshape(len(smooth), -1)
    spread = laplacian.std(axis=1)
    cubed = (laplacian * laplacian * laplacian).mean(axis=1)
    skew = cubed / np.maximum(spread, 1e-4) ** 3
    columns = [gradient.mean(axis=1), gradient.std(axis=1), np.abs(laplacian).mean(axis=1), spread, skew]
    return np.column_stack(columns)


def _binary_patterns(channel: np.ndarray) -> np.ndarray:
    padded = np.pad(channel, ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = channel.shape[1:]
    larger = np.stack([padded[:, i : i + height, j : j + width] > channel for i, j in _NEIGHBOURS])
    changes = (larger != np.roll(larger, 1, axis=0)).sum(axis=0, dtype=np.int8)
    # At most two changes around the circle: an edge, a corner or a blob, told by the number of larger neighbours.
    pattern = np.where(changes <= 2, larger.sum(axis=0, dtype=np.int8), 9).reshape(len(channel), -1)
    return np.stack([(pattern == k).mean(axis=1) for k in range(10)], axis=1)
