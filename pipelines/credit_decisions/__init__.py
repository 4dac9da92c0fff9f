"""The credit-decisions pipeline: from a table of rows with a class to a registered classifier and batch scores."""
