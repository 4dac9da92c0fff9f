"""The vehicle-prices pipeline: from a table of listings to a registered price model and batch prices."""
