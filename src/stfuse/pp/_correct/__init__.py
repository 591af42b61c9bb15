"""Batch correction: arrays in, arrays out."""
