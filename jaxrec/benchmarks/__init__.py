"""What `python -m jaxrec.benchmark` measures: one file per suite, the peers, and the yardsticks."""
