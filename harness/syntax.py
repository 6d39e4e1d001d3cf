"""Python texts as trees, from several threads at once."""

import ast
import threading

_ALONE = threading.RLock()
"""Held while a tree is built. Up to Python 3.12 one counter says how deep every tree under construction is, so that
two threads at once can end in a SystemError, "AST constructor recursion depth mismatch"
(https://github.com/python/cpython/issues/106905); programs are emitted by a thread for each backend."""


def parse(text: str) -> ast.Module:
    """A file's tree, as `ast.parse` gives it. Raises SyntaxError or ValueError where the text is no Python."""
    with _ALONE:
        return ast.parse(text)


def parse_expression(text: str) -> ast.expr:
    """An expression's tree. Raises what `parse` does."""
    with _ALONE:
        return ast.parse(text, mode="eval").body
