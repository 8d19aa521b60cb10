"""Measurements as a page, as figures and as advice."""
