"""Layout of a VMCS region in memory: our format, so every backend reads and writes the same bytes.

| offset | bytes | content |
| --- | --- | --- |
| 0 | 4 | bits 30:0 revision identifier, bit 31 shadow-VMCS indicator; written by software |
| 4 | 4 | VMX-abort indicator |
| 8 | 8 | bit 0: launch state (1 launched) |
| 16 + 8 n | 8 | field n of the processor's fields in table order, zero-extended |

Source: Intel SDM vol. 3C, "Format of the VMCS Region"; what follows offset 8 is the
implementation's.
"""

from .capabilities import Capabilities

__all__ = [
    "ABORT_OFFSET", "FIELDS_OFFSET", "LAUNCH_OFFSET", "SHADOW_BIT", "WORD_BYTES", "field_offsets",
]

SHADOW_BIT = 1 << 31
ABORT_OFFSET = 4
LAUNCH_OFFSET = 8
FIELDS_OFFSET = 16
WORD_BYTES = 8


def field_offsets(capabilities: Capabilities) -> dict[str, int]:
    """Byte offset in the region of every field of this processor, by symbol, in table order."""
    return {symbol: FIELDS_OFFSET + WORD_BYTES * number
            for number, symbol in enumerate(capabilities.fields)}
