"""Families of tasks, each member described by its examples: label subsets, warped images, domains of text, tables."""
