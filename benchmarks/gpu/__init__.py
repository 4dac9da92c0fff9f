"""The check of a GPU's answers and their time."""
