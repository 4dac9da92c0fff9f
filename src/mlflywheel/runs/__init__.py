"""Running a compiled pipeline on this machine: one folder a run, with everything that it made.

`runner.run_pipeline` starts `execute` in a child process, which runs the compiled YAML through `kfp.local`. The steps
write events (`mlflywheel.events`); the parent draws progress from them and composes `summary.json` and `report.html`,
also when the run fails.
"""
