"""How each family of heads is published: its config keys, file and tensor names, one per file.

`read` makes an unfilled head of what was `Found` in a folder; `write` gives back the config. Called
by `loader` and `save`; the tensors themselves are moved by `rules` of the head.
"""
