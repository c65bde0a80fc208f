"""What is claimed of the learned optimizers: tables, goals, pictures, the cards of the shipped weights."""
