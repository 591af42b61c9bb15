"""The package logger; the application decides where its lines go."""

import logging

logger = logging.getLogger("stfuse")
