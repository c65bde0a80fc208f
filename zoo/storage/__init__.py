"""The format on disk, and reading it: what a zoo's files hold, how a crash leaves them whole, how damage is found."""
