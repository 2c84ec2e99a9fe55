"""Reading on and sampling, token by token."""
