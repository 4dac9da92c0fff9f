"""What runs inside containers: the definition of the component image."""
