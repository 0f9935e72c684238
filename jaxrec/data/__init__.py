"""What is learnt from, as flat numpy columns, and the batches made of it."""
