"""The running environment.

Facts: registers.csv. ``live`` changes as a whole at a commit; between commits only the core's own
register writes and the VMX-preemption timer change it.
"""

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities

from .interface import register_layout, require_capabilities, update_layout

__all__ = ["LiveState"]


class LiveState(wiring.Component):
    """Every register of the running environment, in flip-flops.

    Parameters
    ----------
    capabilities : Capabilities
        The processor; decides which registers exist and how wide they are.

    Members
    -------
    live : Out(:func:`~.interface.register_layout`), resets to 0
        The environment in force.
    next : In(:func:`~.interface.register_layout`)
        Environment that a commit puts in force.
    commit : In(1)
        Replaces all of ``live`` by ``next`` at the next edge. Not together with ``update_en``.
    updates : In(stream)
        The core's own register writes, one per cycle: register number in table order, and value,
        cut to the register's width. ``ready`` is ``update_en``.
    update_en : In(1)
        Lets ``updates`` through.
    ticks : In(32)
        By how much PREEMPTION_TIMER counts down at the next edge, to 0 at most. A commit and a
        write of the register win.
    changing : Out(1)
        Combinational: ``live`` may change at the next edge.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        layout = register_layout(capabilities)
        super().__init__({
            "live": Out(layout), "next": In(layout), "commit": In(1),
            "updates": In(stream.Signature(update_layout(capabilities))),
            "update_en": In(1), "ticks": In(32), "changing": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        updated = self.updates.valid & self.updates.ready
        m.d.comb += [
            self.updates.ready.eq(self.update_en),
            self.changing.eq(self.commit | updated | (self.ticks != 0)),
        ]
        if "PREEMPTION_TIMER" in self._capabilities.registers:
            timer = self.live.PREEMPTION_TIMER
            m.d.sync += timer.eq(Mux(timer < self.ticks, 0, timer - self.ticks))
        # What comes in is chosen by `update_en`, which is known long before `commit` is.
        incoming = Signal.like(self.next)
        m.d.comb += incoming.eq(self.next)
        with m.If(self.update_en):
            m.d.comb += [incoming[name].eq(self.updates.p.value)
                         for name in self._capabilities.registers]
        for number, name in enumerate(self._capabilities.registers):
            with m.If(self.commit | (updated & (self.updates.p.register == number))):
                m.d.sync += self.live[name].eq(incoming[name])
        return m
