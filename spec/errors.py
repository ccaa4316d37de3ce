"""Errors that every layer may raise and the command line understands."""

__all__ = ["UsageError"]


class UsageError(Exception):
    """Bad input. The message is one clear line saying what to do; the exit status is 2."""
