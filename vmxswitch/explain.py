"""The verb ``explain``: one entry of the tables in words, with its neighbours."""

from vmxswitch.firmware.auditing import glossary
from vmxswitch.firmware.auditing.report import row

__all__ = ["run"]


def run(arguments):
    """Prints every entry of the name; 0."""
    parts = []
    for entry in glossary.entries(" ".join(arguments.entry)):
        lines = [entry.title]
        for head, words in entry.lines:
            lines += row(f"  {head}", words, 16)
        if entry.neighbours:
            lines.append("  beside it")
            for head, words in entry.neighbours:
                lines += row(f"    {head}", words, max(16, len(head) + 6))
        parts.append("\n".join(lines))
    print("\n\n".join(parts))
    return 0
