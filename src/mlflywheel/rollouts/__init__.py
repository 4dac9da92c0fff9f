"""Rollouts of a candidate beside the version in use: their record, the tick that moves them on, and their rehearsal.

What talks to servers stands behind three interfaces: `Actuator` moves traffic, `Source` brings evidence, `Store` keeps
the record. `mlflywheel.cluster` implements them for KServe, Prometheus and Kubernetes.
"""
