"""Made-up data that lets a new user run every pipeline without a download. One module a pipeline."""
