"""The steps from each released schema of feedback.db to the next, for Alembic; `upgrading` runs them.

Each step is in `versions`, written against the tables as they were, never against the present ones.
"""
