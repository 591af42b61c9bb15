import json
import os
import pickle
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file

from stfuse.pp._encoders import _weights, get_encoder

CROPS = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=1000).eval()


@pytest.fixture
def file(resnet18, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(resnet18.state_dict(), path)
    return path


def expected(network, crops):
    """The network's pooled features, by timm's own transform and PIL."""
    from PIL import Image
    from torchvision import transforms as t

    resize = t.Resize((224, 224), interpolation=t.InterpolationMode.BICUBIC)
    prepare = t.Compose([resize, t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    images = torch.stack([prepare(Image.fromarray(crop)) for crop in crops])
    with torch.inference_mode():
        return network.forward_head(network.forward_features(images), pre_logits=True).numpy()


def test_any_network_of_timm_from_a_file(resnet18, file):
    encode = get_encoder("resnet18", checkpoint=file, device="cpu")
    assert (encode.n_features, encode.input_size) == (512, 224)
    features = encode(CROPS)
    np.testing.assert_allclose(features, expected(resnet18, CROPS), atol=2e-2)
    assert encode.record["source"] == "file" and encode.record["file"] == "net.safetensors"
    assert encode.record["size"] == file.stat().st_size and len(encode.record["sha256"]) == 16
    json.dumps(encode.record)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encode))(CROPS), features)


def test_the_token_tells_weights_apart(resnet18, file, tmp_path):
    token = get_encoder("resnet18", checkpoint=file, device="cpu").token
    assert token == get_encoder("resnet18", checkpoint=str(file), device="cpu").token
    state = resnet18.state_dict()
    state["bn1.bias"] = state["bn1.bias"] + 1
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    save_file(state, other)
    assert get_encoder("resnet18", checkpoint=other, device="cpu").token != token


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"state_dict": {f"_orig_mod.backbone.{k}": v for k, v in state.items()}},
    ],
    ids=["bare", "nested", "parallel", "compiled"],
)
def test_pickles_are_read_when_allowed(resnet18, tmp_path, wrap):
    path = tmp_path / "net.pth"
    torch.save(wrap(resnet18.state_dict()), path)
    with pytest.raises(ValueError, match="net.pth is no safetensors file.*allow_pickle=True"):
        get_encoder("resnet18", checkpoint=path)
    encode = get_encoder("resnet18", checkpoint=path, allow_pickle=True, device="cpu")
    np.testing.assert_allclose(encode(CROPS), expected(resnet18, CROPS), atol=2e-2)


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["STFUSE_TEST_EVIL"],))


def test_pickles_run_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv("STFUSE_TEST_EVIL", str(tmp_path / "made"))
    path = tmp_path / "net.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "more": Evil()}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        get_encoder("resnet18", checkpoint=path, allow_pickle=True)
    assert not (tmp_path / "made").exists()


def test_files_that_are_not_there_or_not_complete(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file checkpoint=.*none.safetensors"):
        get_encoder("resnet18", checkpoint=tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        get_encoder("resnet18", checkpoint=tmp_path)
    content = file.read_bytes()
    for n in (0, 5, 1000, len(content) - 10):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:n])
        with pytest.raises(ValueError, match="cut.safetensors can't be read.*is it complete"):
            get_encoder("resnet18", checkpoint=cut)
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for n in (0, 20, len(content) // 2):
        (tmp_path / "cut.pt").write_bytes(content[:n])
        with pytest.raises(ValueError, match="cut.pt"):
            get_encoder("resnet18", checkpoint=tmp_path / "cut.pt", allow_pickle=True)
    (tmp_path / "list.pt").unlink(missing_ok=True)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no named tensors"):
        get_encoder("resnet18", checkpoint=tmp_path / "list.pt", allow_pickle=True)


def test_weights_of_another_network(file, tmp_path, resnet18):
    with pytest.raises(ValueError, match="seem to hold weights of 'resnet34'. Of its 216 tensors 80 are missing"):
        get_encoder("resnet34", checkpoint=file)
    with pytest.raises(
        ValueError, match="does not seem to hold weights of 'uni'.*342 are missing .first: .*unexpected"
    ):
        get_encoder("uni", checkpoint=file)
    state = {**resnet18.state_dict(), "conv1.weight": torch.zeros(64, 1, 7, 7)}
    save_file(state, tmp_path / "gray.safetensors")
    with pytest.raises(ValueError, match=r"0 are missing, 1 have another shape \(first: conv1.weight\), and 0"):
        get_encoder("resnet18", checkpoint=tmp_path / "gray.safetensors")


OFFLINE = """
import sys
from stfuse.pp._encoders import get_encoder
for name in sys.argv[1:]:
    try:
        print("loaded", get_encoder(name, device="cpu").record)
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_offline_the_local_cache_is_used_and_nothing_else(tmp_path):
    """With HF_HUB_OFFLINE: a network in the cache is loaded, others say how to get them."""
    sha = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--timm--resnet50.tv_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(sha)
    (repository / "snapshots" / sha).mkdir(parents=True)
    network = timm.create_model("resnet50")
    save_file(
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in network.state_dict().items()},
        repository / "snapshots" / sha / "model.safetensors",
    )
    names = ["resnet50", "uni", "resnet18", "hf-hub:someone/something"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    env.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", OFFLINE, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    loaded, uni, resnet18, something = done.stdout.strip().split("\n")
    assert loaded.startswith("loaded") and sha in loaded and "timm/resnet50.tv_in1k" in loaded
    for line, page in (
        (uni, "https://huggingface.co/MahmoodLab/UNI "),
        (resnet18, "https://huggingface.co/timm/resnet18"),
        (something, "https://huggingface.co/someone/something "),
    ):
        assert line.startswith("WeightsUnavailableError") and page in line
        assert "hf auth login" in line and "HF_TOKEN" in line and "checkpoint=" in line and "HF_HUB_OFFLINE" in line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "access to it must be granted first"),
        (RepositoryNotFoundError, "no such repository"),
        (RemoteEntryNotFoundError, "holds none of the files model.safetensors, pytorch_model.bin"),
        (LocalEntryNotFoundError, "not in the local cache"),
    ],
)
def test_a_closed_door_is_told_from_a_wrong_address(error, message, monkeypatch):
    def refuse(repository, file):
        raise error("no") if error is LocalEntryNotFoundError else error("no", response=Mock(headers={}))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(_weights.WeightsUnavailableError, match=message):
        get_encoder("virchow2")
