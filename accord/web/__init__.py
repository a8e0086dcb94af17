"""The labelling app and the dashboard: people judge completions, owners see what the votes are worth.

`app` puts it together; `security`, `callers` who may come in; `labelling`, `items` the page where people judge;
`entry`, `people`, `worth`, `dashboard` the other pages; `api` votes from elsewhere, `client` for Python; `server` runs
it all.
Leaves out what is stored and decided about votes (`feedback`) and the loop itself.
"""
