"""The networks that are trained here. A network is a plugin (``contract``); ``model`` adds the heads that losses need.

torch lives in this room and in ``training``.
"""
