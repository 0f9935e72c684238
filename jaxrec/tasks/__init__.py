"""Tasks: what is learnt and how it is measured, one file each; see `problem`."""
