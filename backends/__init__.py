"""Compilers and sessions, a folder a framework. Nothing puts this folder itself on `sys.path`: `torch` stays torch."""
