"""Update rules: pure mathematics over lists of tensors, batched over networks."""
