"""Data steps: reading, checking, splitting."""
