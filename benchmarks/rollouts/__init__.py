"""How often the canary judge errs on simulated traffic, and what others' rules do on the same."""
