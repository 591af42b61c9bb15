"""Batches that live on the device, and the training plans."""
