"""Search for parameters: one Katib `Experiment` (v1beta1), read strictly, run on this machine or by a cluster's Katib.

- `reader` turns YAML into an `Experiment`, by Katib's own rules.
- `experiment` is what was read; `search` is what a search finds, and when it ends.
- `suggestions`, `early_stopping` and `metrics` do what Katib's services do: sample, stop, read logs.
- `local` runs trials as processes of this machine; `mlflywheel.cluster.katib` hands the Experiment to Katib.
- `trial` is the command that one trial runs.

Both executors are a `search.Tuner`: Kubeflow means to replace Katib, and then a third one takes its place.
"""
