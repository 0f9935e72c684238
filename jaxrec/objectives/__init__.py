"""What surrounds a loss: its settings, its draws, and what it carries from step to step."""
