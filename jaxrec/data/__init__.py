<<<<<<< HEAD
"""What training and evaluation read: histories, splits, features, batches (host, numpy)."""
=======
"""What is learnt from, as flat numpy columns, and the batches made of it."""
>>>>>>> nodes
