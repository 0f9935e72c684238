"""What training and evaluation read: histories, splits, features, batches (host, numpy)."""
