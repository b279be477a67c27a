"""The leak report of some models on one data set: `cil leak`.

`command` is the entry. `probe_units` makes one-step predictions of held-out clips and keeps sums
per clip, `pipelines.evaluate` samples videos of them; `probe_table` and `sample_table` take both
together; `resamples` gives intervals, `verdict` decides by written rules, `report` writes the page.
"""
