"""Accord: bring a language model into accord with the people who use it."""

__version__ = "0.1.0"
