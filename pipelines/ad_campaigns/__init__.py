"""The ad-campaigns pipeline: from a table of terms to registered topic fingerprints and batch scores."""
