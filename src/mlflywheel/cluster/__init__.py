"""The only callers of Kubernetes, Katib, KServe, Kubeflow Pipelines and Kubeflow Model Registry.

Nothing outside this package, the components and the command line imports from it.
"""
