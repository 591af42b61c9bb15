"""Configuration of the documentation. It builds without a network; STFUSE_DOCS_ONLINE=1 adds links to other projects."""

import os
import shutil
import sys
from datetime import datetime
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

import api_pages  # noqa: E402

# -- Pages written by the build ----------------------------------------------

api_pages.write(HERE)
for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
    (HERE / "notebooks").mkdir(exist_ok=True)
    shutil.copy2(notebook, HERE / "notebooks" / notebook.name)

# -- Project -----------------------------------------------------------------

info = metadata("stfuse")
project = info["Name"]
author = info["Author"]
copyright = f"{datetime.now():%Y}, {author}"
version = release = info["Version"]
repository_url = dict(line.split(", ") for line in info.get_all("Project-URL") or [])["Source"]

# -- General -----------------------------------------------------------------

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",  # after napoleon
    "sphinxcontrib.bibtex",
    "sphinxcontrib.katex",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",
]
exclude_patterns = ["_build", "Thumbs.db", ".DS_Store", "**.ipynb_checkpoints", "api/_*.md"]
templates_path = ["_templates"]
default_role = "literal"
nitpicky = True

autosummary_generate = True
autosummary_context = {"own": api_pages.own}
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = True
napoleon_use_param = True
always_use_bars_union = True
typehints_defaults = None
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

katex_options = 'output: "mathml"'  # drawn by the browser itself, without fonts from elsewhere
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_admonition", "html_image"]
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")
nb_execution_mode = "off"
nb_merge_streams = True

suppress_warnings = [
    "config.cache",  # autosummary_context holds a function
    "myst.header",  # the changelog is included without its first heading
    "sphinx_autodoc_typehints.forward_reference",  # types that are imported for type checkers only
    "sphinx_autodoc_typehints.guarded_import",
]

# -- Links to other projects -------------------------------------------------

# A type reports the module that defines it; a private module has no page.
nitpick_ignore_regex = [("py:.*", r".*\._.*")]
if os.environ.get("STFUSE_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }
else:
    # Only links inside stfuse can be checked.
    nitpick_ignore_regex.append(("py:.*", r"(?!stfuse\b).*"))

# -- HTML --------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "repository_url": repository_url,
    "use_repository_button": True,
    "path_to_docs": "docs/",
    "navigation_with_keys": False,
}
ogp_social_cards = {"enable": False}
