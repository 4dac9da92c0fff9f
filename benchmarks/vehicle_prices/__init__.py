"""Vehicle prices: how good they are on real listings, and what they cost beside scikit-learn and ONNX Runtime."""
