"""Captioned pictures to train on."""
