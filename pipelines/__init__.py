"""Pipelines: wiring only, one folder a use case, compiled into the YAML that runs everywhere."""
