"""A solver is a table of coefficients: `StepTable`, one row per call of a step op.

`paths` and `predictions` give the Gaussian paths and what a model predicts on them, `grids` where
the steps lie, `table` the table itself with `columns`, its files (`table_file`) and its form on
other paths (`convert`), `ragged` a table per sample, `plan` what the sampling loop does, and
`diffusers_schedules` the discrete schedules of diffusers, VibeVoice and MAR, with `diffusers_steps`
the rows of its schedulers on them, and `ratio_rows` and `table_family` what a learned table is.
"""
