"""One training loop, and the steps that use it."""
