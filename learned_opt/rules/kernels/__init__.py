"""Fast paths of the MLP rule. Each computes what `mlp_rule.reference_step` says in one readable function."""
