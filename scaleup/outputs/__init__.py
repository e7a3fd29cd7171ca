"""Exported models, report pages, tables."""
