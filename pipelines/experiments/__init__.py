"""Experiments: commands of this project that are run for several seeds, and one table of them all.

    python -m pipelines.experiments configs/experiments/stillness.yaml

`plan` reads what is to be run, `results` gathers the leak reports of the seeds, `page` writes the
table and the figure. Nothing is trained or measured here: that is done by the commands.
"""
