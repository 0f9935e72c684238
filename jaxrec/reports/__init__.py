"""A run for people's eyes: one page."""
