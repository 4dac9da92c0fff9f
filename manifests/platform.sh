#!/bin/sh
# Install what mlflywheel builds on into the current context of kubectl, each part by its own project's manifests, in the
# order in which they need each other. For a cluster that has none of it, such as a new one of kind; it can be begun
# again. Needs kubectl, git, curl and bash.
set -eu

ENVOY_GATEWAY=v1.8.1
KSERVE=v0.21.0
KUBEFLOW_PIPELINES=2.17.0
KATIB=v0.19.0
MODEL_REGISTRY=v0.3.8

here=$(cd "$(dirname "$0")" && pwd)
script=$(mktemp)
trap 'rm -f "$script"' EXIT
set -x

# The kinds of the Gateway API, and who implements them.
kubectl apply --server-side -f "https://github.com/envoyproxy/gateway/releases/download/$ENVOY_GATEWAY/install.yaml"

# cert-manager and KServe in Standard mode, with the Gateway API turned on in its ConfigMap.
curl -sSfL -o "$script" "https://raw.githubusercontent.com/kserve/kserve/$KSERVE/hack/setup/quick-install/kserve-standard-mode-full-install-with-manifests.sh"
GATEWAY_NETWORK_LAYER=envoy bash "$script"
kubectl apply -k "$here/gateway"

# Kubeflow Pipelines by itself, with Argo, a database and an object store, in the namespace kubeflow.
pipelines=https://github.com/kubeflow/pipelines/manifests/kustomize
kubectl apply -k "$pipelines/cluster-scoped-resources?ref=$KUBEFLOW_PIPELINES"
kubectl wait --for=condition=established --timeout=1m crd/workflows.argoproj.io
kubectl apply -k "$pipelines/env/platform-agnostic?ref=$KUBEFLOW_PIPELINES"

# Katib and the model registry, in the same namespace.
kubectl apply -k "https://github.com/kubeflow/katib/manifests/v1beta1/installs/katib-standalone?ref=$KATIB"
kubectl apply -n kubeflow -k "https://github.com/kubeflow/model-registry/manifests/kustomize/overlays/db?ref=$MODEL_REGISTRY"

# The keys of the object store, in the form that KServe and the steps read.
kubectl get secret mlpipeline-minio-artifact -n kubeflow -o "go-template-file=$here/base/model-store.gotemplate" |
	kubectl apply --server-side -n kubeflow -f -

kubectl wait --for=condition=Available --timeout=30m deployments --all -n kserve
kubectl wait --for=condition=Available --timeout=30m deployments --all -n kubeflow
