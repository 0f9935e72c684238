"""Placement on devices, exact top-k over a split table, and several processes."""
