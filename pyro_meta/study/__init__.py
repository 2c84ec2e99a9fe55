"""Many runs that answer one question: planned, run and never repeated, compared.

description  what is asked for: options, a grid, variants, seeds, baselines
plan         what to run: variants x grid x seeds, and the baselines that judge them
runner       processes that train, each in its own folder
live         what is shown meanwhile
results      what is left: study.json, study.csv, study.md, pareto.png
"""
