"""One loop for every learner: `learner` says what a learner is, `loop` runs, logs, saves and resumes it, `average` keeps the
weights' moving average, `miudiff.runs` turns one YAML file into a run."""
