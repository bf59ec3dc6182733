"""Search for the best structure inside a budget of latency, memory, parameters or bytes.

`Search` says what to look for; `prune(model, Search(...), data)` calls `search.search`.
"""
