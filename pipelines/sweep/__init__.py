"""A sweep: several trainings on the same data, steps and seeds that differ in one thing each.

    sweep file -> base and overrides (`sweep_file`) -> arms, fair ones (`arms`)
               -> the stages of `cil run`, arm after arm, in one Ray session (`runner`)
               -> measures (`measures`, `results`)
               -> report.json, report.csv, report.html (`report`, `curves`, `gallery`)

Nothing is measured here: all numbers are what the stages wrote down.
"""
