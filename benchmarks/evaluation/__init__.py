"""How often the decisions about a model err, on simulated and on real data."""
