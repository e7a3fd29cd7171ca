"""Recipes: their keys, the allowed values of each key, and how base files, variants and changes are merged."""
