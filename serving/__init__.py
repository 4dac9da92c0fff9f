"""What runs inside containers: the predictor, and the definitions of the images."""
