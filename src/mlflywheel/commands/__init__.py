"""The commands of `mlflywheel` that are more than a few lines, one module each; `mlflywheel.cli` lists them all."""
