"""What a local search costs beside Optuna, and what it finds."""
