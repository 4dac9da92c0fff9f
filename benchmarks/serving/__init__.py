"""What a served prediction costs, beside a server that computes nothing and beside MLServer with the same model."""
