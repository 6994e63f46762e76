"""Stages of a run: what each needs and builds, the plan of a run, and its execution."""
