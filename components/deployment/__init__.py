"""Rolling a registered version out beside the one in use."""

from mlflywheel.components.deployment.component import deploy_model

__all__ = ["deploy_model"]
