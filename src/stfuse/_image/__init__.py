"""Tissue images: where their pixels lie, how large they are, and crops out of them, for images that need not fit memory."""
