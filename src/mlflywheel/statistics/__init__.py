"""Statistics that decisions rest on: intervals and their assumptions, as pure functions on arrays."""
