"""Training N networks as one batched program."""
