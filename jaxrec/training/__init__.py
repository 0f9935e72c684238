"""The train state, the loop, and what a run leaves on disk."""
