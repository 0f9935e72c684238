"""Protocols, the evaluation pass, metrics, baselines and reports."""
