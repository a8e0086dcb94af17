"""Votes: the store, file formats in and out, consensus, agreement, simulated annotators, splits.

`records` a vote as JSON; `schema`, `store` feedback.db; `importing`, `exporting` files; `pairs`, `ratings`, `consensus`
votes -> preferences, one file per aggregation; `agreement` how far people agree; `simulate` annotators of known skill;
`splits` which prompts are held out. Leaves out fetching (files are local) and asking people (`web`).
"""
