"""The whole evaluation of a generator: rivals that are trained or fitted, controls, tables and pictures."""
