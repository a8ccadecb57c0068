"""The service over collections: an HTTP API, the page on it, and the client.

live         a collection as it changes: requests finish on the generation they began with
work         threads, with what arrives together done together
decoding     pictures decoded in processes that may die (``decoder`` is what runs there)
api          what can be asked; ``models`` are its requests and answers, and its description
safety       who may ask: host, origin, token, and the headers of every answer
app, server  the routes, and the process

Starlette and uvicorn are imported when something is served, and for that alone.
"""
