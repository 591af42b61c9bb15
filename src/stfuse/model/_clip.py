"""CLIP on precomputed features: the contrastive baseline."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from stfuse._check import check_number
from stfuse._views import Views
from stfuse.model._alignment import Alignment, Run, align, unit_codes
from stfuse.model._base import Codes, FusionModel
from stfuse.model._pcca import check_pairs
from stfuse.model._training import check_training
from stfuse.module.clip import TwoTowers


class CLIP(FusionModel):
    """Contrastive alignment of paired views (symmetric InfoNCE), the field's usual baseline.

    Two small encoders bring pairs together and everything else in the batch apart. It sees pairs only, and with thousands of
    pairs at most it memorises them: training stops on held-out pairs, of which it keeps the best epoch.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    n_latent
        Width of the shared code of each view.
    n_hidden
        Width of the hidden layer.

    Notes
    -----
    Radford et al. (2021), Learning transferable visual models from natural language supervision.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(200)
    >>> stfuse.model.CLIP.setup_anndata(adata)
    >>> model = stfuse.model.CLIP(adata, n_latent=16)
    >>> model.train(max_epochs=2)
    >>> model.get_latent_representation(view="rna").shape
    (200, 16)
    """

    _method = "clip"
    module: TwoTowers | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_latent: int = 32,
        n_hidden: int = 128,
    ) -> None:
        check_number("n_latent", n_latent, least=1, whole=True)
        check_number("n_hidden", n_hidden, least=1, whole=True)
        super().__init__(adata, registry, n_latent=n_latent, n_hidden=n_hidden)

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        validation_fraction: float = 0.2,
        patience: int = 15,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train.

        Parameters
        ----------
        max_epochs
            Epochs at most. None = 100, or 20 where there are too few pairs to hold some out.
        batch_size
            Pairs a step; all of them when there are fewer.
        lr, weight_decay
            Of AdamW.
        validation_fraction
            Fraction of the pairs (2,000 at most) held out to stop on.
        patience
            Epochs without improvement after which training stops.
        seed
            Seed of everything random.
        device
            `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
        progress
            Whether to show a bar. None = in a terminal or notebook.
        trainer_kwargs
            Passed to `lightning.pytorch.Trainer` (`devices=`, `strategy=`, `precision=`, `callbacks=`, `logger=`).

        Raises
        ------
        ValueError
            If there are fewer than four pairs, or an argument is out of range.
        """
        check_training(validation_fraction, patience, weight_decay=weight_decay, lr=lr)
        settings = Alignment(max_epochs, batch_size, lr, weight_decay, validation_fraction, patience)
        views = self._begin(seed)
        check_pairs(views, 4, "CLIP")
        module, history = align(Run(self, views, settings, seed, device, progress, trainer_kwargs))
        self._finish(module, history)

    def _codes(self, views: Views) -> Codes:
        if self.module is None:
            raise RuntimeError("CLIP is not trained yet: call .train() first.")
        return unit_codes(self.module, views, self.params_["n_latent"])

    def _architecture(self) -> dict[str, Any]:
        return {"n_image": self.n_features_["image"], "n_rna": self.n_features_["rna"]}

    def _build(self, architecture: dict[str, Any]) -> TwoTowers:
        return TwoTowers(
            architecture["n_image"],
            architecture["n_rna"],
            n_latent=self.params_["n_latent"],
            n_hidden=self.params_["n_hidden"],
        )
