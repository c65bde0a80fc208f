"""Optimizers on other people's code and kinds of task: a panel that nothing here was made with."""
