"""The unit's register map: where each of its ports is on a 32-bit bus.

Hardware (:mod:`.wishbone_unit`, :mod:`.serial_unit`), the driver of a board, the C header and
``docs/registers.md`` read the same rows.
"""

import zlib
from collections.abc import Mapping

from amaranth.hdl import Shape
from amaranth.lib import data

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode

from .interface import (
    INSTRUCTION_ROWS,
    Event,
    Request,
    Response,
    register_layout,
    update_layout,
)
from .register_file import WORD_BYTES, Register

__all__ = [
    "BOARD_BASE", "IDENTITY", "RESET_WORD", "MemoryStatus", "Status", "board_registers", "c_header",
    "configuration_word", "unit_registers",
]

IDENTITY = int.from_bytes(b"VMXS", "big")    #: what ``ID`` reads
RESET_WORD = int.from_bytes(b"RSET", "big")  #: what resets the unit
BOARD_BASE = 0x400                           #: first address of the registers of a board


class Status(data.Struct):
    """Bits of ``STATUS``."""
    busy:     1     # something was started that has not ended
    checked:  1     # the last request was a VM entry that came to its checks: see ``DIAGNOSIS``
    launched: 1     # launch state of the current VMCS
    mode:     Mode  # present mode


class MemoryStatus(data.Struct):
    """Bits of ``MEMORY_STATUS``."""
    busy: 1   # an access, or the clearing after a reset, has not ended
    full: 1   # a write found no free frame since the last reset
    used: 16  # frames taken
    all:  14  # frames that there are


def _width(shape) -> int:
    return Shape.cast(shape).width


def unit_registers(capabilities: Capabilities) -> dict[str, Register]:
    """The registers of the unit by name, in the order of their addresses."""
    rows = [
        Register("ID", 0x000, 32, "r", "Always the same: ASCII `VMXS`.", IDENTITY),
        Register("CONFIGURATION", 0x004, 32, "r",
                 "CRC-32 over the processor and the tables that the unit was built from.",
                 configuration_word(capabilities)),
        Register("RESET", 0x008, 32, "w",
                 f"{RESET_WORD:#x}, ASCII `RSET`, resets the unit and these registers; any other "
                 "value does nothing."),
        Register("TICKS", 0x00C, 32, "w",
                 "Port `ticks` has this value for one cycle: time passes for the VMX-preemption "
                 "timer."),
        Register("CYCLE", 0x010, 64, "r",
                 "Clock cycles since reset. Reading the low word keeps the high one for the next "
                 "read."),
        Register("REQUEST", 0x040, _width(Request), "w",
                 "Payload of `requests`. REQUEST, EVENT and UPDATE share their storage."),
        Register("EVENT", 0x080, _width(Event), "w", "Payload of `events`."),
        Register("UPDATE", 0x0D0, _width(update_layout(capabilities)), "w",
                 "Payload of `updates`."),
        Register("STATUS", 0x100, _width(Status), "r",
                 "Whether an operation is being carried out, and what holds at all times."),
        Register("CYCLES", 0x104, 32, "r",
                 "Cycles of the last operation, from the one that accepted it to the first one "
                 "that showed its result."),
        Register("RESPONSE", 0x108, _width(Response), "r",
                 "Payload of `responses` or `verdicts`: what became of the last operation."),
        Register("CURRENT_VMCS", 0x128, 64, "r",
                 "Current-VMCS pointer; all ones if there is none.", None),
        Register("DIAGNOSIS", 0x140, len(capabilities.checks), "r", "Port `diagnosis`."),
        Register("LIVE", 0x200, _width(register_layout(capabilities)), "r", "Port `live`."),
    ]
    for payload in ("REQUEST", "EVENT", "UPDATE"):
        row = next(row for row in rows if row.name == payload)
        rows.insert(rows.index(row) + 1, Register(
            f"{payload}_START", row.address + WORD_BYTES * row.words, 1, "w",
            f"Writing anything hands {payload} to the unit. It is passed over while STATUS.busy."))
    return _checked(rows, range(0, BOARD_BASE))


def board_registers() -> dict[str, Register]:
    """The registers that a board has beside those of the unit: serial line and memory."""
    return _checked([
        Register("LINK_CHECK", BOARD_BASE, 32, "r",
                 "CRC-32 of every byte on the serial line, in both directions, before this word. "
                 "A write of LINK_RESTART begins it anew."),
        Register("LINK_RESTART", BOARD_BASE + 0x04, 1, "w", "Begins LINK_CHECK anew."),
        Register("CLOCK_HZ", BOARD_BASE + 0x08, 32, "r", "Clock frequency in Hz.", None),
        Register("MEMORY_ADDRESS", BOARD_BASE + 0x10, 64, "w",
                 "Byte address of a 64-bit word of physical memory."),
        Register("MEMORY_W_DATA", BOARD_BASE + 0x18, 64, "w", "What to write there."),
        Register("MEMORY_ACCESS", BOARD_BASE + 0x20, 8, "w",
                 "Starts an access: a bit for each byte to write, which go in halves of four; 0 "
                 "reads."),
        Register("MEMORY_STATUS", BOARD_BASE + 0x24, _width(MemoryStatus), "r",
                 "State of the memory.", None),
        Register("MEMORY_R_DATA", BOARD_BASE + 0x28, 64, "r", "What was read."),
    ], range(BOARD_BASE, 2 * BOARD_BASE))


def _checked(rows, place) -> dict[str, Register]:
    """The rows by name; :exc:`ValueError` if they overlap or leave their place."""
    following = [*(row.address for row in rows[1:]), place.stop]
    for row, end in zip(rows, following, strict=True):
        if row.address + WORD_BYTES * row.words > end:
            raise ValueError(f"register {row.name}: {row.words} words do not fit before {end:#x}")
    return {row.name: row for row in rows}


def configuration_word(capabilities: Capabilities) -> int:
    """A CRC-32 by which software sees that a unit is not the one that it has in mind."""
    description = (
        capabilities.description, [*capabilities.fields], [*capabilities.registers],
        [*capabilities.checks], [row.id for row in INSTRUCTION_ROWS])
    return zlib.crc32(repr(description).encode())


def c_header(registers: Mapping[str, Register]) -> str:
    """A C header: offset, number of words and, where it is known, reset value of each register."""
    lines = ["#ifndef VMX_REGISTERS_H", "#define VMX_REGISTERS_H", "",
             "/* Byte offsets; a register is of 32-bit words, the lowest bits first. */"]
    for row in registers.values():
        lines += ["", f"/* {row.access}, {row.bits} bits: {row.meaning} */",
                  f"#define VMX_{row.name} {row.address:#05x}",
                  f"#define VMX_{row.name}_WORDS {row.words}"]
        if row.reset:
            lines.append(f"#define VMX_{row.name}_RESET {row.reset:#010x}u")
    lines += ["", f"#define VMX_RESET_WORD {RESET_WORD:#010x}u", "", "#endif", ""]
    return "\n".join(lines)
