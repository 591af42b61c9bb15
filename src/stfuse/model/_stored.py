"""What every model shares: a training that is whole or leaves nothing, and a folder to save it in."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import BaseModelClass
from torch import nn

from stfuse import _record
from stfuse.model import _storage


@contextmanager
def silent_scvi() -> Iterator[None]:
    """scvi-tools prints a line for every array it registers, which says nothing to a user here."""
    logger = logging.getLogger("scvi")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Category .* has fewer than 3 cells")
            yield
    finally:
        logger.setLevel(level)


def all_or_nothing[**P](train: Callable[P, None]) -> Callable[P, None]:
    """Leave a model as it was, its former training included, where training it fails or is interrupted."""

    @wraps(train)
    def whole(*args: P.args, **kwargs: P.kwargs) -> None:
        model = vars(args[0])
        before = dict(model)
        try:
            train(*args, **kwargs)
        except BaseException:
            model.clear()
            model.update(before)
            raise

    return whole


class StoredModel(BaseModelClass):
    """Base of all models: parameters, a module, a record of training, and files that cannot run code."""

    _method: ClassVar[str]
    module: nn.Module | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "train" in vars(cls):
            cls.train = all_or_nothing(vars(cls)["train"])

    def __init__(self, adata: AnnData | None = None, registry: dict[str, Any] | None = None, **params: Any) -> None:
        super().__init__(adata, registry)
        self.params_ = params
        self.module = None
        self.seed_ = 0
        self.report_: dict[str, float] = {}
        self._model_summary_string = f"stfuse {type(self).__name__}"
        self.init_params_ = {"kwargs": dict(params)}

    @abstractmethod
    def _build(self, architecture: dict[str, Any]) -> nn.Module:
        """Make an empty module of the stored sizes."""

    @abstractmethod
    def _architecture(self) -> dict[str, Any]:
        """Sizes from which `_build` can make the module again."""

    def setup_keys(self) -> dict[str, Any]:
        """Keys given to `setup_anndata`: where the model looks for its data."""
        return dict(self.registry_["setup_args"])

    def _finish(self, module: nn.Module, history: pd.DataFrame | None = None) -> None:
        self.module = module.eval()
        self.history_ = {} if history is None else {name: history[[name]] for name in history}
        self.is_trained_ = True

    def _state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What a model needs beside its module: plain values and tensors."""
        return {}, {}

    def _restore(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `_state` gave."""

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, dir_path: str | Path, overwrite: bool = False, **kwargs: Any) -> None:
        """Save to a folder of safetensors and JSON; a file from a stranger cannot run code.

        Parameters
        ----------
        dir_path
            Folder; made when needed.
        overwrite
            Whether a folder that is not empty may be written into.
        kwargs
            None; other options of scvi-tools are refused.

        Raises
        ------
        FileExistsError
            If the folder is not empty and `overwrite` is False.
        TypeError
            If an option is given that is not one of these.
        """
        _no_options("save", kwargs)
        if self.module is None:
            raise RuntimeError("There is nothing to save: the model is not trained yet.")
        values, arrays = self._state()
        body = values | {
            "class": type(self).__name__,
            "versions": _record.versions(),
            "params": self.params_,
            "registry": self.registry_,
            "architecture": self._architecture(),
            "seed": self.seed_,
            "report": self.report_,
            "history": _storage.history_to_plain(self.history_ or {}),
        }
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= arrays
        _storage.write(dir_path, body, tensors, overwrite)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | None = None, **kwargs: Any) -> Self:
        """Load a saved model; the training data are not needed.

        Parameters
        ----------
        dir_path
            Folder written by `save`.
        adata
            Data to attach, under the same keys as in training. None = pass data to each call.
        kwargs
            None; other options of scvi-tools are refused.

        Returns
        -------
        The model, ready to code.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        ValueError
            If a file is truncated or altered, or the folder holds another class of model.
        TypeError
            If an option is given that is not one of these.
        """
        _no_options("load", kwargs)
        return cls._load(dir_path, adata)

    @classmethod
    def _load(cls, dir_path: str | Path, adata: AnnData | None, **given: Any) -> Self:
        """Load what was saved; ``given`` are arguments of the class that no file can hold."""
        body, tensors = _storage.read(dir_path)
        if body["class"] != cls.__name__:
            raise ValueError(
                f"{dir_path} holds a {body['class']} model: load it with stfuse.model.{body['class']}.load."
            )
        if adata is None:
            model = cls(None, registry=body["registry"], **body["params"], **given)
        else:
            cls.setup_anndata(adata, **body["registry"]["setup_args"])
            model = cls(adata, **body["params"], **given)
        model.seed_, model.report_ = body["seed"], body["report"]
        model._restore(body, tensors)
        module = model._build(body["architecture"])
        module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
        plain = {k: [np.nan if v is None else v for v in values] for k, values in body["history"].items()}
        frame = pd.DataFrame(plain, index=pd.RangeIndex(1, 1 + max(map(len, plain.values()), default=0), name="epoch"))
        model._finish(module, frame)
        return model


def _no_options(name: str, kwargs: dict[str, Any]) -> None:
    """scvi-tools' `save` and `load` take options that mean nothing here; to overlook one would mislead."""
    if kwargs:
        raise TypeError(f"{name}() takes no {', '.join(sorted(kwargs))} in stfuse.")
