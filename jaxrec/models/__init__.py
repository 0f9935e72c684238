"""Models, one file each, on the contract of `problem`: a `Config` and what it makes."""
