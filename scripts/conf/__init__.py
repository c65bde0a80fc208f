"""Hydra configs of the scripts: one file a script, one folder a group."""
