"""Unlabelled brains to a backbone: one file an objective, views, the run."""
