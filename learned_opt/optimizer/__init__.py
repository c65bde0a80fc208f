"""Learned optimizers as drop-ins for torch.optim."""
