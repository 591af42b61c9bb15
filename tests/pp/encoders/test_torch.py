import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models import Inception_V3_Weights, ResNet50_Weights

from stfuse.pp._encoders import get_encoder
from stfuse.pp._encoders._table import ROWS
from stfuse.pp._encoders._torch import TorchEncoder, choose_device, precision_on

NETWORKS = [row for row in ROWS if row.build != "texture"]


def photographs(n=2, height=140, width=180):
    """Smooth and sharp at once: a random image of few pixels, enlarged, with noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 9, 11, 3), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(c).resize((width, height))) for c in coarse])
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def bare(row, module=None):
    return TorchEncoder(
        module or nn.Flatten(),
        name=row.name,
        n_features=row.dimension,
        input_size=row.input_size,
        mean=row.mean,
        std=row.std,
        interpolation=row.interpolation,
        record={},
        device="cpu",
    )


@pytest.mark.parametrize("shape", [(140, 180), (224, 224), (500, 430)])
@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.name)
def test_images_are_prepared_as_by_pil_and_torchvision(row, shape):
    crops = photographs(2, *shape)
    mode = transforms.InterpolationMode[row.interpolation.upper()]
    reference = transforms.Compose(
        [
            transforms.Resize((row.input_size, row.input_size), interpolation=mode),
            transforms.ToTensor(),
            transforms.Normalize(row.mean, row.std),
        ]
    )
    expected = torch.stack([reference(Image.fromarray(crop)) for crop in crops])
    prepared = bare(row).prepare(crops)
    assert prepared.shape == expected.shape and prepared.dtype == torch.float32
    level = 1 / 255 / min(row.std)
    levels = (prepared - expected).abs() / level  # PIL rounds between its two passes, so some values differ by one
    assert levels.mean() < 0.3 and (levels > 1.01).float().mean() < 1e-3 and levels.max() < 6


@pytest.mark.parametrize(
    ("name", "weights"),
    [("resnet50", ResNet50_Weights.IMAGENET1K_V1), ("inception_v3", Inception_V3_Weights.IMAGENET1K_V1)],
)
def test_transforms_of_torchvision_networks(name, weights):
    """Inception's network of torchvision itself goes on from ImageNet's colours to the halves used here."""
    theirs = weights.transforms()
    row = next(r for r in ROWS if r.name == name)
    assert theirs.interpolation.value == row.interpolation and theirs.crop_size == [row.input_size]
    if name == "resnet50":
        assert (tuple(theirs.mean), tuple(theirs.std)) == (row.mean, row.std)


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        self.seen = (self.training, torch.is_grad_enabled(), images.is_contiguous(memory_format=torch.channels_last))
        return images.mean(dim=(2, 3)) * self.weight


def test_a_network_runs_in_evaluation_mode_and_without_gradients():
    encode = bare(NETWORKS[1], Watched())
    features = encode(photographs(3))
    assert features.shape == (3, 3) and features.dtype == np.float32
    assert encode.module.seen == (False, False, True)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encode))(photographs(3)), features)


def test_half_precision_changes_little():
    torch.manual_seed(0)
    encode = bare(NETWORKS[1], nn.Sequential(nn.Conv2d(3, 8, 7, stride=7), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    single = encode(photographs())
    encode.precision = torch.bfloat16  # as on CUDA
    half = encode(photographs())
    assert half.dtype == np.float32 and not np.array_equal(half, single)
    np.testing.assert_allclose(half, single, atol=0.01)


def test_device():
    assert choose_device("cpu").type == "cpu" and precision_on(torch.device("cpu")) is torch.float32
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    for device in ("tpu", "cuda:x", ""):
        with pytest.raises(ValueError, match="device must be"):
            choose_device(device)
    with pytest.raises(ValueError, match="does not see it here"):
        choose_device("cuda:99")
    with pytest.raises(ValueError, match="device must be"):
        get_encoder("uni", device="gpu")


class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, images):
        self.shape, self.dtype = images.shape, images.dtype
        assert not any(part.training for part in self.modules())
        return self.norm(images).mean(dim=(2, 3))


def test_a_module_gets_floats_and_keeps_its_state():
    module = Means()
    encode = get_encoder(module)
    assert (encode.name, encode.n_features, encode.input_size, encode.token) == ("Means", None, None, None)
    crops = photographs()
    features = encode(crops)
    np.testing.assert_allclose(features, crops.mean(axis=(1, 2)) / 255, atol=1e-5)
    assert module.training and module.norm.training and not module.frozen.training
    assert module.shape == (2, 3, 140, 180) and module.dtype == torch.float32
    assert encode.n_features == 3 and module.norm.num_batches_tracked == 0
    get_encoder(module.half())(crops)
    assert module.dtype == torch.float16


def test_a_module_keeps_its_state_after_an_error():
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("broken")

    module = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        get_encoder(module)(photographs())
    assert module.training


def test_a_function_gets_floats():
    def quantiles(images):
        assert images.shape[1:] == (3, 140, 180) and images.dtype == torch.float32
        assert images.min() >= 0 and 0.5 < images.max() <= 1
        return images.amax(dim=(2, 3))

    encode = get_encoder(quantiles)
    assert encode.name == "quantiles"
    crops = photographs()
    np.testing.assert_allclose(encode(crops), crops.max(axis=(1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(get_encoder(lambda x: x.amax(dim=(2, 3)).numpy())(crops), encode(crops))


def test_a_function_may_want_a_size():
    def flat(images):
        return images.flatten(1)

    flat.input_size = 32
    encode = get_encoder(flat)
    assert encode.input_size == 32
    crops = photographs()
    expected = np.stack([np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BILINEAR)) for c in crops])
    np.testing.assert_allclose(
        encode(crops).reshape(2, 3, 32, 32).transpose(0, 2, 3, 1), expected / 255, atol=1.1 / 255
    )
    flat.input_size = "32"
    with pytest.raises(ValueError, match="input_size of encoder 'flat' must be a whole number"):
        get_encoder(flat)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x, ValueError, r"one row of features for each of the 2 crops.*\(2, 3, 140, 180\)"),
        (lambda x: x.mean(dim=(2, 3))[:1], ValueError, r"shape \(1, 3\)"),
        (lambda x: x.mean(dim=(1, 2, 3)), ValueError, r"shape \(2,\)"),
        (lambda x: x.mean(dim=(2, 3)) / 0, ValueError, "not finite"),
        (lambda x: {"features": x}, TypeError, "of type dict"),
        (lambda x: None, (TypeError, ValueError), "type NoneType|shape"),
    ],
    ids=["images", "too few", "flat", "infinite", "dict", "nothing"],
)
def test_what_a_function_gives_is_checked(function, error, message):
    with pytest.raises(error, match=message):
        get_encoder(function)(photographs())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda():
    module = nn.Sequential(nn.Conv2d(3, 8, 7, stride=7), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    row, crops = NETWORKS[1], photographs(5)
    slow = bare(row, module)(crops)
    encode = TorchEncoder(
        module,
        name="x",
        n_features=8,
        input_size=row.input_size,
        mean=row.mean,
        std=row.std,
        interpolation=row.interpolation,
        record={},
        device="cuda",
    )
    assert encode.record["precision"] in {"bfloat16", "float16"}
    np.testing.assert_allclose(encode(crops), slow, atol=0.02)
    assert (encode.prepare(crops).cpu() - bare(row).prepare(crops)).abs().max() < 2.1 / 255 / min(row.std)
