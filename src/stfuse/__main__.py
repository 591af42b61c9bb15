"""Command line: ``python -m stfuse demo --out DIR``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from stfuse._demo._methods import METHODS


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    top = argparse.ArgumentParser(
        prog="python -m stfuse", description="Fuse histology images and spatial transcriptomics into shared codes."
    )
    top.add_argument("--version", action="version", version=f"stfuse {version('stfuse')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="fuse four bundled sections of mouse olfactory bulb and write a report",
        description="Take the bundled mouse olfactory bulb from photographs and counts to fused domains, neighbourhoods "
        "and pathways. Writes mob.h5ad, the figures and report.html into DIR, over those of an earlier run. Takes a few minutes and needs no network.",
    )
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into, made if missing")
    demo.add_argument(
        "--method", choices=METHODS, default=METHODS[0], help="what fuses the two views (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default: %(default)s)")
    demo.add_argument(
        "--encoder",
        default="texture",
        metavar="NAME",
        help="what describes the photographs: texture (no weights needed), efficientnet-lite0, uni, ... "
        "(stfuse.pp.encoders() lists them) or a model of timm (default: %(default)s)",
    )
    demo.add_argument("--checkpoint", type=Path, metavar="FILE", help="local file with the encoder's weights")
    return top


def check_folder(out: Path) -> str | None:
    """Make the folder and say what is wrong with it, before minutes are spent on computing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return None
    except FileExistsError:
        return f"{str(out)!r} is a file: name a folder with --out."
    except OSError as error:
        return f"cannot write into {str(out)!r}: {error.strerror or error}. Name another folder with --out."


def check_encoder(name: str, checkpoint: Path | None) -> str | None:
    """Say why an encoder can't be had, before anything is computed."""
    if name == "texture" and checkpoint is None:
        return None
    from stfuse.pp._encoders import get_encoder

    try:
        get_encoder(name, checkpoint=checkpoint)
    except (ValueError, OSError, ImportError) as error:
        return f"--encoder {name}: {error}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if options.seed < 0:
        command_line.error(f"--seed must not be negative, got {options.seed}.")
    # data this small gain little from a second thread, and on a busy machine threads lose minutes waiting for each other;
    # read when numpy, torch and scikit-learn are loaded, so it comes before the imports
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    problem = check_folder(options.out) or check_encoder(options.encoder, options.checkpoint)
    if problem:
        command_line.error(problem)

    import matplotlib as mpl
    from tqdm.auto import tqdm

    from stfuse._demo._pipeline import run
    from stfuse._demo._tour import Settings

    # nobody looks at windows here, and there may be no screen
    mpl.use("agg")
    # squidpy and spatialdata tell of every graph they make; the report does it better
    logging.disable(logging.INFO)
    settings = Settings(
        method=options.method, seed=options.seed, encoder=options.encoder, checkpoint=options.checkpoint
    )
    try:
        run(options.out, settings, say=tqdm.write)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        logging.disable(logging.NOTSET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
