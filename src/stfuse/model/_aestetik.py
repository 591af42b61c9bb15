"""AESTETIK: an autoencoder of spatial windows whose codes keep the clusters of both views apart."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from stfuse import _cluster
from stfuse._check import check_flag, check_number
from stfuse._log import warn
from stfuse._views import Views
from stfuse._windows import check_window
from stfuse.model._base import Codes, FusionModel, pick
from stfuse.model._training import check_training
from stfuse.model._window_checks import check_places, check_trainable, has_batches
from stfuse.model._window_clusters import EQUAL, ViewFeatures, grouped, judged_clusters
from stfuse.model._window_views import ViewInput, Windows
from stfuse.module.aestetik import WindowAutoencoder
from stfuse.module.windows import BLOCK, WindowData
from stfuse.train._fit import fit
from stfuse.train._window_plan import WindowBatches, WindowPlan, WindowSettings, WindowTargets

TOTAL_WEIGHT = 3.0  # of both views together
VIEWS = ("rna", "image")  # in the order of the windows' features
BATCH = 1_024
PUBLISHED_BATCH = 8_192
PUBLISHED_PASSES = 1_000
CLUSTERING = {"gmm": _cluster.gmm, "kmeans": _cluster.kmeans}


class AESTETIK(FusionModel):
    """Code of each observation and its surroundings in both views.

    A convolutional autoencoder reads windows of both views' features around each observation. Its code rebuilds the
    window and keeps apart what the clusters of either view keep apart, so that it lends itself to domains; all sections are
    trained together, and a domain has one meaning in all of them. Views corrected for the batch
    (:func:`stfuse.pp.recipe_cross_sample`) make it the cross-sample method; with a `batch_key` the model corrects, too.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`, with coordinates in `obsm["spatial"]`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    n_clusters
        Clusters of each view that the code keeps apart, and groups that `predict` tells: about the number of domains looked for.
    image_weight
        Weight of the image in the loss, 0 to 3; the RNA has the rest of 3. The published package calls it `morphology_weight` and sets 1.5. None
        = the data say: 1.5 times the share of what clusters tell of the neighbours' expression that the image's clusters reach.
    window_size
        Side of the window in observations, odd. Time and memory grow with its square.
    n_comps
        A view of more features is reduced to so many principal components. None = as it is.
    smooth
        Whether features are reduced to what they share with their surroundings (kriging) before anything else.
    clustering
        How the clusters are found: `"gmm"` (Gaussian mixture, one covariance) or `"kmeans"` of each view; `"judged"`: mixtures of the
        RNA or of both views, whichever predict the neighbours' expression best, and of the image.
    n_latent, n_hidden, n_encoders, dropout
        Width of the code, channels of a convolution, members whose median counts, fraction of channels dropped.
    mc_passes
        Mean of so many passes with dropout in place of one without. None = 0; with `reference` 1,000.
    reference
        Whether to follow the published package (version 0.3.1) in all it does, for comparison: see the notes.

    Notes
    -----
    Nonchev et al. 2024 (the network) and Dai, Nonchev et al. 2026 (across samples, equation 5). Each window is encoded once in a step and
    the triplets index the codes; smoothing, mixture clusters and one pass without dropout are ours.

    `reference=True`: no smoothing; clusters of a Bayesian mixture; windows of places on the array, taken as they are in `obs`;
    pooling that drops what fills no whole cell (with a window of 7 the encoder never sees two of seven rows and columns);
    batches of 8,192; the mean of 1,000 passes with dropout, normalised by the moments of the data that are coded.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, seed=1)
    >>> stfuse.model.AESTETIK.setup_anndata(adata)
    >>> model = stfuse.model.AESTETIK(adata, n_clusters=4)
    >>> model.train(max_epochs=5)
    >>> model.get_latent_representation().shape
    (300, 16)
    >>> model.predict().shape
    (300,)
    """

    _method = "aestetik"
    module: nn.ModuleDict | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_clusters: int = 8,
        image_weight: float | None = None,
        window_size: int = 5,
        n_comps: int | None = 20,
        smooth: bool = True,
        clustering: Literal["judged", "gmm", "kmeans"] = "judged",
        n_latent: int = 16,
        n_hidden: int = 64,
        n_encoders: int = 3,
        dropout: float = 0.3,
        mc_passes: int | None = None,
        reference: bool = False,
    ) -> None:
        check_number("n_clusters", n_clusters, least=1, whole=True)
        check_number("image_weight", image_weight, least=0, most=TOTAL_WEIGHT, optional=True)
        check_window(window_size)
        check_number("n_comps", n_comps, least=1, whole=True, optional=True)
        for name, value in (("n_latent", n_latent), ("n_hidden", n_hidden), ("n_encoders", n_encoders)):
            check_number(name, value, least=1, whole=True)
        check_number("dropout", dropout, least=0)
        if dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout}.")
        check_number("mc_passes", mc_passes, least=0, whole=True, optional=True)
        check_flag("smooth", smooth)
        check_flag("reference", reference)
        pick(("judged", *CLUSTERING), clustering, "clustering")
        super().__init__(
            adata,
            registry,
            n_clusters=n_clusters,
            image_weight=image_weight,
            window_size=window_size,
            n_comps=n_comps,
            smooth=smooth,
            clustering=clustering,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_encoders=n_encoders,
            dropout=dropout,
            mc_passes=mc_passes,
            reference=reference,
        )

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        loss: Literal["l1", "mse"] = "l1",
        n_repeats: int = 1,
        lambda_batch: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train.

        Parameters
        ----------
        max_epochs
            Number of epochs. None = 100.
        batch_size
            Windows a step. None = 1,024; with `reference` 8,192.
        loss
            Error of the rebuilt windows: `"l1"` (as the published package) or `"mse"` (as its paper).
        n_repeats
            Triplets of each observation with each other cluster, in each view.
        lambda_batch
            Weight of what keeps codes of different batches alike (maximum mean discrepancy), where there is a `batch_key`.
        lr, weight_decay
            Of Adam.
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
            If there are no coordinates, sections lie on top of each other, a view has fewer observations than clusters, or an
            argument is out of range.
        """
        reference = self.params_["reference"]
        check_number("max_epochs", max_epochs, least=1, whole=True, optional=True)
        check_number("batch_size", batch_size, least=2, whole=True, optional=True)
        check_number("n_repeats", n_repeats, least=1, whole=True)
        check_number("lambda_batch", lambda_batch, least=0)
        pick(("l1", "mse"), loss, "loss")
        check_training(0.0, None, weight_decay=weight_decay, lr=lr)
        views = self._begin(seed)
        windows = self._windows(views)
        check_trainable(views, self.params_["n_clusters"])
        if batch_size is None:
            batch_size = PUBLISHED_BATCH if reference else BATCH
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inputs, clusters, weights, data = self._prepare(views, windows, seed)
            network = self._network(data.features.shape[1], len(views.batches) if has_batches(views) else 0)
            settings = WindowSettings(*weights, loss, n_repeats, lambda_batch, lr, weight_decay)
            batch = torch.from_numpy(views.batch) if views.batch is not None and network.n_batches else None
            rows = torch.from_numpy(np.flatnonzero(views.has_image | views.has_rna))
            targets = WindowTargets(torch.from_numpy(clusters), batch)
            history, _ = fit(
                WindowPlan(network, settings, seed),
                max_epochs=100 if max_epochs is None else max_epochs,
                batches=WindowBatches(data, targets, rows, batch_size, seed),
                device=device,
                seed=seed,
                progress=progress,
                desc="AESTETIK",
                trainer_kwargs=trainer_kwargs,
            )
        module = nn.ModuleDict({**inputs, "network": network.to("cpu")})
        codes = self._encode(network, data.to(torch.device("cpu")), rows)
        centers = _centers(codes[rows.numpy()], self.params_["n_clusters"], seed)
        module["centers"] = nn.ParameterList([nn.Parameter(torch.from_numpy(centers), requires_grad=False)])
        self._finish(module, history)

    # -- data ---------------------------------------------------------------------------------------------------------

    def _windows(self, views: Views) -> Windows:
        if self.params_["window_size"] > 1:
            check_places(views)
        windows = Windows(views, self.params_["window_size"], believe_array=self.params_["reference"])
        if not windows.placed.all():
            warn(
                f"{(~windows.placed).sum()} observation(s) have no coordinates: their windows hold nothing but themselves."
            )
        if windows.doubled.any():
            warn(
                f"{windows.doubled.sum()} observation(s) share their place with another one of their section, which alone is "
                "seen by its neighbours."
            )
        return windows

    def _prepare(
        self, views: Views, windows: Windows, seed: int
    ) -> tuple[dict[str, ViewInput], np.ndarray, tuple[float, float], WindowData]:
        """Inputs of both views, clusters of each (n x 2, -1 = none), weights of both in the loss, and the windows' data."""
        inputs: dict[str, ViewInput] = {}
        features, scaled = [], []
        for name, x, has in _both(views):
            inputs[name], found, part = ViewInput.fit(x, has, windows, self.params_["n_comps"], smoothed=self._smooth)
            features.append(found)
            scaled.append(part)
            if self._smooth:
                self.report_[f"signal_{name}"] = inputs[name].signal_share()
        clusters, weight = self._clusters(features, windows, seed)
        weights = self._weights(clusters, weight)
        self.report_["image_weight"] = weights[1]
        return inputs, clusters, weights, _window_data(scaled, inputs, windows, views)

    def _clusters(self, features: list[ViewFeatures], windows: Windows, seed: int) -> tuple[np.ndarray, float]:
        """Clusters of RNA and image (n x 2), and the image's weight: the one asked for, or the one that the data give."""
        k, asked = self.params_["n_clusters"], self.params_["image_weight"]
        if self.params_["clustering"] == "judged" and not self.params_["reference"]:
            rna, image, weight, told = judged_clusters(features[0], features[1], windows.ring, k, seed, windows.section)
            self.report_ |= told
            return np.column_stack([rna, image]), weight if asked is None else asked
        find = _cluster.bayesian_mixture if self.params_["reference"] else CLUSTERING[self.params_["clustering"]]
        found = [grouped(view.smooth, view.has, lambda values: find(values, k, seed)) for view in features]
        return np.column_stack(found), EQUAL if asked is None else asked

    def _weights(self, clusters: np.ndarray, weight: float) -> tuple[float, float]:
        """Weights of RNA and image; a view in one cluster has none, as there is nothing in it to keep apart.

        Where nothing would have any weight then, windows are rebuilt all the same.
        """
        rna, image = clusters.max(axis=0) > 0
        weights = (TOTAL_WEIGHT - weight) * bool(rna), weight * bool(image)
        if not any(weights):
            return TOTAL_WEIGHT - weight, weight
        for name, several in (("RNA", rna), ("image", image)):
            if not several:
                warn(f"The {name} view falls into a single cluster: it has no weight in the loss.")
        return weights

    @property
    def _smooth(self) -> bool:
        """Whether features are smoothed; an observation alone has nothing to be smoothed by."""
        return self.params_["smooth"] and not self.params_["reference"] and self.params_["window_size"] > 1

    def _network(self, n_features: int, n_batches: int) -> WindowAutoencoder:
        return WindowAutoencoder(
            n_features,
            self.params_["window_size"],
            n_latent=self.params_["n_latent"],
            n_members=self.params_["n_encoders"],
            n_hidden=self.params_["n_hidden"],
            dropout=self.params_["dropout"],
            n_batches=n_batches,
            truncate=self.params_["reference"],
        )

    # -- codes --------------------------------------------------------------------------------------------------------

    def _parts(self) -> tuple[dict[str, ViewInput], WindowAutoencoder, Tensor]:
        if self.module is None:
            raise RuntimeError("AESTETIK is not trained yet: call .train() first.")
        network, centers = self.module["network"], self.module["centers"]
        if not isinstance(network, WindowAutoencoder) or not isinstance(centers, nn.ParameterList):
            raise TypeError(type(network).__name__)
        inputs = {name: view for name in VIEWS if isinstance(view := self.module[name], ViewInput)}
        return inputs, network, centers[0]

    def _codes(self, views: Views) -> Codes:
        inputs, network, _ = self._parts()
        for name, x, _has in _both(views):
            if x.shape[1] == 0:
                key = self.setup_keys()[f"{name}_key"]
                warn(f"There is no obsm[{key!r}]: the {name} view counts as missing in all of these observations.")
        windows = self._windows(views)
        scaled = [
            view.transform(x, has, windows) for view, (_, x, has) in zip(inputs.values(), _both(views), strict=True)
        ]
        data = _window_data(scaled, inputs, windows, views)
        rows = torch.from_numpy(np.flatnonzero(views.has_image | views.has_rna))
        return Codes(fused=self._encode(network, data, rows))

    @torch.no_grad()
    def _encode(self, network: WindowAutoencoder, data: WindowData, rows: Tensor) -> np.ndarray:
        """Codes of some rows, NaN in the others."""
        passes, reference = self.params_["mc_passes"], self.params_["reference"]
        if passes is None:
            passes = PUBLISHED_PASSES if reference else 0
        out = np.full((data.features.shape[0], self.params_["n_latent"]), np.nan, dtype=np.float32)
        encoder = copy.deepcopy(network.encoder).train(passes > 0)
        n_parts = -(-rows.numel() // (PUBLISHED_BATCH if passes else BLOCK))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed_)
            for part in rows.tensor_split(max(1, n_parts)):
                # published: by the moments of what is coded; a single row has none
                encoder.norm.train(reference and passes > 0 and part.numel() > 1)
                pooled = encoder.pooled(data.windows(part))
                code = encoder.code(pooled)
                for _ in range(passes - 1):
                    code += encoder.code(pooled)
                out[part.numpy()] = (code / max(1, passes)).numpy()
        return out

    def predict(self, adata: AnnData | None = None) -> np.ndarray:
        """Tell the group of each observation, by the nearest of the centers found in the training data.

        Groups have the same meaning in whatever data; `0` was the largest in training.

        Parameters
        ----------
        adata
            New data under the keys of the set-up. None = the training data.

        Returns
        -------
        n integers, 0 to `n_clusters` - 1; -1 for observations without a code.
        """
        codes = self.get_latent_representation(adata)
        centers = self._parts()[2].numpy()
        there = np.isfinite(codes).all(1)
        groups = np.full(len(codes), -1, dtype=np.int64)
        for start in range(0, len(codes), BLOCK):
            block = codes[start : start + BLOCK]
            groups[start : start + BLOCK] = ((block[:, None] - centers) ** 2).sum(2).argmin(1)
        return np.where(there, groups, -1)

    def _architecture(self) -> dict[str, Any]:
        inputs, network, centers = self._parts()
        sizes = {name: int(view.get_buffer("low").numel()) for name, view in inputs.items()}
        return {"n_out": sizes, "n_batches": network.n_batches, "n_centers": len(centers)}

    def _build(self, architecture: dict[str, Any]) -> nn.ModuleDict:
        module = nn.ModuleDict()
        for name in VIEWS:
            n_out = architecture["n_out"][name]
            module[name] = ViewInput(self.n_features_[name], self.params_["n_comps"], n_out, smoothed=self._smooth)
        module["network"] = self._network(sum(architecture["n_out"].values()), architecture["n_batches"])
        empty = torch.zeros(architecture["n_centers"], self.params_["n_latent"])
        module["centers"] = nn.ParameterList([nn.Parameter(empty, requires_grad=False)])
        return module


def _both(views: Views) -> tuple[tuple[str, np.ndarray, np.ndarray], ...]:
    """RNA before the image, as in the windows."""
    return ("rna", views.rna, views.has_rna), ("image", views.image, views.has_image)


def _window_data(scaled: list[np.ndarray], inputs: dict[str, ViewInput], windows: Windows, views: Views) -> WindowData:
    typical = np.concatenate([view.get_buffer("typical").numpy() for view in inputs.values()])
    has = np.column_stack([views.has_rna, views.has_image])
    return WindowData.make(np.hstack(scaled).astype(np.float32), scaled[0].shape[1], windows.table, has, typical)


def _centers(codes: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Centers of K-means clusters, the largest first."""
    labels = _cluster.kmeans(codes, n_clusters, seed)
    _, first, which, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    means = np.stack([codes[which == group].mean(0) for group in range(len(sizes))])
    return means[np.lexsort((first, -sizes))]
