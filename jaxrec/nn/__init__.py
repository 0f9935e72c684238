<<<<<<< HEAD
"""Layers that models share."""
=======
"""Layers that models are built of."""
>>>>>>> nodes
