"""Whether the package works on a card, how fast, and what the claims say there: `tying-utils gpu`.

Each part (`facts`, `correct`, `fast`, `claims`) is a list of tasks. `plan` runs them within their shares of the minutes and
writes each result the moment it is known; `summary` puts them in words, and `read` turns them into committed tables.
"""
