"""Models, one file each: `Config(...).make(num_items, rngs=...)`, `loss`, `queries`."""
