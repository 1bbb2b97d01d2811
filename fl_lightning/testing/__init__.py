"""Conformance suites: what every component of a slot must do, for components from outside as well as for our own."""
