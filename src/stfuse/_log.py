"""The package's logger, and warnings that point at the user's line."""

import logging
import warnings
from pathlib import Path

logger = logging.getLogger("stfuse")


def warn(message: str) -> None:
    """Warn of what changes a result, at the line outside of this package that called it."""
    warnings.warn(message, UserWarning, skip_file_prefixes=(str(Path(__file__).parent),))
