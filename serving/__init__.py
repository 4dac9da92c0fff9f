"""What runs inside containers: the definition of the component image, and the KServe predictor."""
