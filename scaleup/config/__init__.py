"""Recipes: their keys, what each key may be, and how a recipe is put together from a base and changes."""
