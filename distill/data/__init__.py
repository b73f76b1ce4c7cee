"""Captioned pictures to train on: one file for each place that they come from."""
