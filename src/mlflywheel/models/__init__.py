"""Models: one module or package each, all behind the contract in `mlflywheel.models.contract`."""
