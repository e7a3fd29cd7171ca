"""What leaves the toolkit: exported models, report pages, tables."""
