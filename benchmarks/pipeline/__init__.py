"""What the pipeline costs over plain function calls."""
