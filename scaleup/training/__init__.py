"""Training of one arm or several on one trunk; token caches."""
