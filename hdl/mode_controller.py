"""VMX mode controller.

Source: Intel SDM vol. 3C, "VMX Operation"; edges in :data:`vmxswitch.spec.operations.EDGES`.
"""

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.operations import EDGES, Mode, Transition

__all__ = ["ModeController"]


class ModeController(wiring.Component):
    """Holds which world runs and follows the table of edges.

    Members
    -------
    transition : In(Transition)
        Wanted change; read while ``strobe`` is high.
    strobe : In(1)
        Takes the edge from the present mode at the next clock edge; a change that the table does
        not have is refused.
    mode : Out(Mode), resets to ``Mode.OFF``
        Present mode.
    refused : Out(1)
        Combinational: ``strobe`` is high and the table has no such edge; ``mode`` stays.
    """
    transition: In(Transition)
    strobe:     In(1)
    mode:       Out(Mode, init=Mode.OFF)
    refused:    Out(1)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.refused.eq(self.strobe)
        for (mode, transition), target in EDGES.items():
            with m.If(self.strobe & (self.mode == mode) & (self.transition == transition)):
                m.d.sync += self.mode.eq(target)
                m.d.comb += self.refused.eq(0)
        return m
