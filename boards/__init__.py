"""Board tops, builds, and size and speed reports."""
