"""The table of fusion methods; ``tl``, docs and contract tests walk it."""

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Method:
    """One fusion method.

    ``min_pairs`` is how many observations with both views it needs to be fitted; ``codes`` are the
    view names it gives shared codes for; ``translates`` says whether it can predict one view from the other. ``objects`` are
    what its function takes: most read both views from one object.
    """

    name: str
    title: str
    summary: str
    reference: str
    model: str
    min_pairs: int
    shared: bool
    private: bool
    translates: bool
    objects: tuple[str, ...] = ("data",)

    def model_class(self) -> type:
        """Import the model class; torch and scvi-tools are loaded here and not before."""
        return getattr(import_module("stfuse.model"), self.model)


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a row to the table."""
    if method.name in METHODS:
        raise ValueError(f"A method named {method.name!r} is registered already.")
    METHODS[method.name] = method
    return method


def fusions() -> dict[str, Method]:
    """Return the methods that read both views from one object, and can stand for each other."""
    return {name: method for name, method in METHODS.items() if method.objects == ("data",)}


def get(name: str) -> Method:
    """Look a method up by name."""
    try:
        return METHODS[name]
    except KeyError:
        raise ValueError(f"Unknown method {name!r}. Registered: {', '.join(sorted(METHODS))}.") from None


register(
    Method(
        name="cameo",
        title="CAMEO",
        summary="Adversarial fusion from few pairs, on top of a linear anchor",
        reference="Learning multimodal representations from partially paired, small-scale data (CAMEO)",
        model="CAMEO",
        min_pairs=2,
        shared=True,
        private=True,
        translates=True,
    )
)
register(
    Method(
        name="aestetik",
        title="AESTETIK",
        summary="Spatial windows of both views, for domains that hold across sections and patients",
        reference="Towards cross-sample alignment for multi-modal representation learning in spatial transcriptomics",
        model="AESTETIK",
        min_pairs=0,
        shared=False,
        private=False,
        translates=False,
    )
)
register(
    Method(
        name="pcca",
        title="PCCA",
        summary="Semi-paired probabilistic CCA: the linear anchor, fitted in a second",
        reference="Bach and Jordan 2005, A probabilistic interpretation of canonical correlation analysis",
        model="PCCA",
        min_pairs=2,
        shared=True,
        private=True,
        translates=True,
    )
)
register(
    Method(
        name="clip",
        title="CLIP",
        summary="Contrastive alignment of pairs, the field's usual baseline",
        reference="Radford et al. 2021, Learning transferable visual models from natural language supervision",
        model="CLIP",
        min_pairs=4,
        shared=True,
        private=False,
        translates=False,
    )
)
register(
    Method(
        name="umpire",
        title="UMPIRE",
        summary="Contrastive alignment through adapters or trained encoders, for retrieval and expression from images",
        reference="Towards unified molecule-enhanced pathology image representation learning via integrating spatial transcriptomics",
        model="UMPIRE",
        min_pairs=4,
        shared=True,
        private=False,
        translates=False,
    )
)
register(
    Method(
        name="sigmma",
        title="SIGMMA",
        summary="Tiles aligned with the graphs of their cells at three scales, for single-cell platforms",
        reference="SIGMMA: hierarchical graph-based multi-scale multi-modal contrastive alignment of histopathology image and spatial "
        "transcriptome",
        model="SIGMMA",
        min_pairs=4,
        shared=True,
        private=False,
        translates=False,
        objects=("cells", "tiles"),
    )
)
register(
    Method(
        name="mirror",
        title="MIRROR",
        summary="Slides and bulk RNA of patients aligned, each keeping what is its own, for subtypes and survival",
        reference="MIRROR: multi-modal pathological self-supervised representation learning via modality alignment and retention",
        model="MIRROR",
        min_pairs=4,
        shared=True,
        private=True,
        translates=False,
        objects=("slides", "tiles"),
    )
)
register(
    Method(
        name="concat",
        title="Concat",
        summary="Balanced principal components of both views side by side",
        reference="the baseline of the CAMEO paper, appendix E.2.1",
        model="Concat",
        min_pairs=0,
        shared=False,
        private=False,
        translates=False,
    )
)
register(
    Method(
        name="neighbor_mean",
        title="Neighbour mean",
        summary="Concat averaged over neighbours in space, the baseline for domains",
        reference="spatially averaged principal components, a baseline without a paper of its own",
        model="NeighborMean",
        min_pairs=0,
        shared=False,
        private=False,
        translates=False,
    )
)
