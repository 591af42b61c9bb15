"""Tests of what makes views."""
