"""CTransPath (Wang et al. 2022): a Swin transformer whose patches come from convolutions."""

import re
from typing import Any

from torch import Tensor, nn

from stfuse.pp._encoders._table import Row
from stfuse.pp._encoders._weights import import_extra

_OLD = "layers.0.downsample.reduction.weight"
_BUFFERS = ("attn_mask", "relative_position_index")  # constants, which old files hold too


class ConvStem(nn.Module):
    """Patches of 4 x 4 pixels by two convolutions of stride 2, then one of 1 x 1; gives b x h x w x c."""

    def __init__(
        self, img_size: Any, patch_size: int, in_chans: int, embed_dim: int, norm_layer: Any, **_: Any
    ) -> None:
        super().__init__()
        widths = (in_chans, embed_dim // 8, embed_dim // 4)
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, kernel_size=1))
        self.norm = norm_layer(embed_dim)
        side = (img_size if isinstance(img_size, int) else img_size[0]) // patch_size
        self.grid_size = (side, side)  # timm asks for it

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into patches."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


def build(row: Row) -> nn.Module:
    """Build the network with random weights: it computes constants that no file holds."""
    timm = import_extra("timm")
    return timm.create_model(row.architecture, embed_layer=ConvStem, num_classes=0, **row.kwargs)


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights: files of old timm halve the image at the end of a stage, now it is done at the next's start."""
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(_BUFFERS)}
    if _OLD not in kept:
        return kept
    return {re.sub(r"(?<=^layers\.)\d+(?=\.downsample)", lambda m: str(int(m[0]) + 1), k): v for k, v in kept.items()}
