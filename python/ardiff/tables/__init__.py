"""A solver is a table of coefficients: `StepTable`, one row per call of a step op.

`paths` and `predictions` give the Gaussian paths and what a model predicts on them, `table` the
table itself, `ragged` a table per sample, `plan` what the sampling loop does with either, and
`diffusers_schedules` the discrete schedules of diffusers, VibeVoice and MAR, `diffusers_steps` its
other steps on them.
"""
