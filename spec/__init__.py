"""The architecture as data: tables, their expressions, and what one processor supports."""
