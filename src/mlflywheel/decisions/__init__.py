"""Automatic decisions as pure functions: measurements in, a verdict with its reasons out."""
