"""The sidecar: the engine over HTTP. `front` answers what is hot, `routes` the rest, `server` runs both.

Nothing outside this package imports FastAPI, uvicorn or prometheus-client: they take 0.4 s to come.
"""
