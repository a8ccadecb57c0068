"""The networks that are trained here. A network is a plugin (``contract``); ``model`` adds the heads that losses need.

torch lives in this room and in ``training``. The plugin itself does without: what it builds is defined in the module of
its name with an underscore, imported when it is built, so that its name and options come quickly.
"""
