"""Networks and linear maps on plain tensors; nothing here knows AnnData."""
