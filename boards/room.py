"""Room for wires: look-up tables of an ECP5 that placement has to leave empty.

The placers of nextpnr fill a tile to the last look-up table before they begin another one, even on
a device that is nearly empty. The unit needs more wires between tiles than full tiles have. So
every tile but those of a few rows gets placeholders, which are connected to nothing.
"""

from collections.abc import Iterator, Mapping

__all__ = ["add_placeholders", "free_for"]

#: Die by the end of the device's name: last row and column of logic, first row of memory blocks.
#: Rows and columns begin at 2; each twelfth row has memory blocks. Source: tile grids of Trellis.
DIES = {"12F": (48, 70, 13), "25F": (48, 70, 13), "45F": (69, 88, 10), "85F": (93, 124, 10)}
FIRST, MEMORY_ROWS = 2, 12
#: Each so many rows one has no placeholders, for adders and distributed memory.
WHOLE_ROWS = 19
#: Look-up tables of a tile in the order in which they are given up.
TABLES = ("SLICED.K1", "SLICED.K0", "SLICEC.K1", "SLICEC.K0", "SLICEB.K1", "SLICEB.K0", "SLICEA.K1")
#: Part of the tables left that may be taken.
FILL = 0.7
PER_TILE = 8


def _rows(device) -> tuple[list[int], list[int], range]:
    """Rows that are thinned out and rows that stay whole; the columns."""
    last_row, last_column, first_memory = DIES[device[-3:]]
    memory = set(range(first_memory, last_row, MEMORY_ROWS))
    rows = [row for row in range(FIRST, last_row + 1) if row not in memory]
    whole = [row for row in rows if row % WHOLE_ROWS == 0]
    return [row for row in rows if row not in whole], whole, range(FIRST, last_column + 1)


def free_for(device: str, cells: Mapping[str, int], luts: int) -> int:
    """How many look-up tables of a tile can be left empty, for a netlist of ``luts`` in all.

    0 where there are not many more than it takes, and for a netlist with more distributed memory
    than the whole rows have tiles for.
    """
    thin, whole, columns = _rows(device)
    if cells.get("TRELLIS_DPR16X4", 0) > len(whole) * len(columns):
        return 0
    tables = PER_TILE * len(whole) * len(columns)
    return next((free for free in range(len(TABLES), 0, -1)
                 if luts <= FILL * (tables + (PER_TILE - free) * len(thin) * len(columns))), 0)


def add_placeholders(netlist: dict, device: str, free: int) -> int:
    """Add to a netlist in Yosys's JSON what keeps ``free`` look-up tables of each tile empty.

    Returns how many placeholders that takes.
    """
    top = next(module for module in netlist["modules"].values()
               if int(module["attributes"].get("top", "0"), 2))
    placeholders = {f"placeholder {place}": _placeholder(place) for place in _places(device, free)}
    top["cells"] |= placeholders
    return len(placeholders)


def _places(device, free) -> Iterator[str]:
    thin, _, columns = _rows(device)
    for row in thin:
        for column in columns:
            for table in TABLES[:free]:
                yield f"X{column}/Y{row}/{table}"


def _placeholder(place) -> dict:
    return {
        "hide_name": 0, "type": "LUT4", "parameters": {"INIT": "0" * 16},
        "attributes": {"BEL": place},
        "port_directions": {**dict.fromkeys("ABCD", "input"), "Z": "output"},
        "connections": {port: [] for port in "ABCDZ"},
    }
