"""What is asked for, how the model reads it, and how prompts are calibrated."""
