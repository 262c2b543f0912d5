"""Rows to tables, figures and a page."""
