"""From zoos to a trained pipeline."""
