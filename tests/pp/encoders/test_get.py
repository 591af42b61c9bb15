import sys

import numpy as np
import pytest
import torch

from stfuse.pp._encoders import Encoder, check_features, get_encoder
from stfuse.pp._encoders._get import _find
from stfuse.pp._encoders._table import ROWS
from stfuse.pp._encoders._texture import TextureEncoder


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_names_are_found_whatever_their_case_and_dashes(row):
    for name in (row.name, row.name.upper(), row.name.replace("-", "_"), row.name.replace("_", "-")):
        assert _find(name) is row


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "unii",
            "No encoder 'unii'. Did you mean 'uni'.*There are: texture, efficientnet-lite0, uni,.*timm.list_models",
        ),
        ("virchow3", "Did you mean 'virchow"),
        ("", "No encoder ''"),
        ("resnet18.no_such_tag", "can't build 'resnet18.no_such_tag'"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        get_encoder(name)


@pytest.mark.parametrize("encoder", [3, None, TextureEncoder, ["uni"]])
def test_what_is_no_encoder(encoder):
    with pytest.raises(TypeError, match="encoder must be a name"):
        get_encoder(encoder)


def test_texture():
    encode = get_encoder("Texture")
    assert isinstance(encode, TextureEncoder) and isinstance(encode, Encoder)
    assert encode.input_size is None and encode.token and len(encode.feature_names) == encode.n_features
    assert get_encoder(encode) is encode
    with pytest.raises(ValueError, match="no weights"):
        get_encoder("texture", checkpoint="some.safetensors")


def test_an_object_with_a_width_gets_crops_as_they_are():
    class Mean:
        name = "mean"
        n_features = 3

        def __call__(self, crops):
            assert crops.dtype == np.uint8
            return crops.mean(axis=(1, 2))

    encode = get_encoder(Mean())
    assert isinstance(encode, Encoder) and encode.token is None and encode.record == {"source": "user"}
    crops = np.full((2, 5, 6, 3), 7, dtype=np.uint8)
    np.testing.assert_array_equal(encode(crops), np.full((2, 3), 7, dtype=np.float32))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="checkpoint= goes with the name"):
        get_encoder(torch.nn.Identity(), checkpoint="x.safetensors")
    with pytest.raises(TypeError, match="checkpoint must be the path of a file or None, got 3"):
        get_encoder("uni", checkpoint=3)
    with pytest.raises(TypeError, match="allow_pickle must be True or False"):
        get_encoder("uni", allow_pickle="yes")


@pytest.mark.parametrize(
    ("name", "package"),
    [("uni", "timm"), ("efficientnet-lite0", "efficientnet_lite_pytorch"), ("conch", "timm"), ("resnet18", None)],
)
def test_a_missing_package(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package or "timm", None)
    if package is None:
        with pytest.raises(ValueError, match='No encoder.*pip install "stfuse\\[encoders\\]"'):
            get_encoder(name)
    else:
        with pytest.raises(ImportError, match=f'package {package}: pip install "stfuse\\[encoders\\]"'):
            get_encoder(name)


def test_features_are_given_as_float32():
    checked = check_features([[1, 2], [3, 4]], "x", 2)
    assert checked.dtype == np.float32 and checked.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match="row of numbers"):
        check_features([["a"]], "x", 1)
