"""Tests: a package, as another distribution installs one of this name and processes of a cluster would import that."""
