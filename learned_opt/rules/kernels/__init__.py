"""Fast paths of the MLP rule. Each computes what `mlp.reference_step` says in one readable function."""
