"""Image encoders: by name, as objects, or as torch modules and functions."""

from stfuse.pp._encoders._get import get_encoder
from stfuse.pp._encoders._interface import Encoder, check_features
from stfuse.pp._encoders._table import encoders

__all__ = ["Encoder", "check_features", "encoders", "get_encoder"]
