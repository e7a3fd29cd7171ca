"""Sweeps of many arms: their cost, their parts, several machines."""
