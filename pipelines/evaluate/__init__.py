"""Measuring models and folders of videos on the clips of a data set: `cil evaluate`.

`run.evaluate_arms` is the entry: arms in, a folder of numbers out. `units` says what is worked on
at once, `worker` does it, `summary` takes the rows together; docs/evaluation.md defines the numbers.
"""
