<<<<<<< HEAD
"""Protocols, the evaluation pass, metrics, baselines and reports."""
=======
"""How predictions are measured."""
>>>>>>> nodes
