"""The boards: whose platform, which configuration fits, how a bitstream gets there."""

import difflib
from dataclasses import dataclass
from importlib import import_module

from vmxswitch.hdl.serial_unit import FRAMES
from vmxswitch.spec.errors import UsageError

__all__ = ["BOARDS", "Board", "board"]


@dataclass(frozen=True)
class Board:
    """A board that a bitstream can be built for.

    Parameters
    ----------
    name : str
        What the command line calls it.
    source : str
        Module and class of its platform.
    config : str
        Configuration that is built unless another one is asked for.
    loader : tuple of str
        What `openFPGALoader` must be told to find it; nothing if it has no part in it.
    uart : tuple of str
        Receiving and transmitting contact of connector `io`, for a board without a UART.
    frames : int
        Size of its memory, see :class:`~vmxswitch.hdl.sparse_memory.SparseMemory`.
    """
    name: str
    source: str
    config: str
    loader: tuple[str, ...] = ()
    uart: tuple[str, str] | None = None
    frames: int = FRAMES

    def platform(self):
        """A new platform, for one build. Needs `amaranth-boards`."""
        from amaranth.build import Attrs
        from amaranth_boards.resources import UARTResource

        module, name = self.source.split(":")
        platform = getattr(import_module(module), name)()
        if self.uart:
            rx, tx = self.uart
            platform.add_resources([
                UARTResource(0, rx=rx, tx=tx, conn=("io", 0), attrs=Attrs(IO_TYPE="LVCMOS33"))])
        return platform


ULX3S = ("-b", "ulx3s")
ORANGECRAB = {"loader": ("-b", "orangeCrab"), "uart": ("0", "1")}
ICE40 = {"loader": ("-b", "ice40_generic"), "frames": 8}
#: Every board by its name.
BOARDS = {board.name: board for board in [
    Board("ulx3s-12f", "amaranth_boards.ulx3s:ULX3S_12F_Platform", "full", ULX3S),
    Board("ulx3s-25f", "amaranth_boards.ulx3s:ULX3S_25F_Platform", "full", ULX3S),
    Board("ulx3s-45f", "amaranth_boards.ulx3s:ULX3S_45F_Platform", "full", ULX3S),
    Board("ulx3s-85f", "amaranth_boards.ulx3s:ULX3S_85F_Platform", "full:16", ULX3S),
    Board("orangecrab-25f", "amaranth_boards.orangecrab_r0_2:OrangeCrabR0_2_25FPlatform", "full",
          **ORANGECRAB),
    Board("orangecrab-85f", "amaranth_boards.orangecrab_r0_2:OrangeCrabR0_2_85FPlatform",
          "full:16", **ORANGECRAB),
    Board("ecp5-5g-evn", "amaranth_boards.ecp5_5g_evn:ECP55GEVNPlatform", "full:16",
          ("-b", "ecp5_evn")),
    Board("versa-ecp5", "amaranth_boards.versa_ecp5:VersaECP5Platform", "full", ("-c", "ft2232")),
    Board("colorlight-5a-75b", "amaranth_boards.colorlight_5a75b_r7_0:Colorlight_5A75B_R70Platform",
          "full", ("-b", "colorlight")),
    Board("colorlight-i5", "vmxswitch.boards.platforms:ColorlightI5Platform", "full",
          ("-b", "colorlight-i5")),
    Board("colorlight-i9", "vmxswitch.boards.platforms:ColorlightI9Platform", "full",
          ("-b", "colorlight-i9")),
    Board("icesugar-pro", "amaranth_boards.icesugar_pro:ICESugarProPlatform", "full",
          ("-c", "cmsisdap")),
    Board("ice40-hx8k-evn", "amaranth_boards.ice40_hx8k_b_evn:ICE40HX8KBEVNPlatform", "compact",
          **ICE40),
    Board("icebreaker", "amaranth_boards.icebreaker:ICEBreakerPlatform", "compact", **ICE40),
    Board("icesugar", "amaranth_boards.icesugar:ICESugarPlatform", "compact", frames=8),
]}


def board(name: str) -> Board:
    """A board by its name; :exc:`UsageError` if there is none."""
    if name not in BOARDS:
        near = difflib.get_close_matches(name, BOARDS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no board {name!r}{meant} (`vmxswitch boards` lists all)")
    return BOARDS[name]
