"""Judging a canary by evidence: windows of traffic and delayed labels in, promote, advance, hold or roll back out."""
